"""Documents into shards of GPT-2 tokens: what data/openwebtext.py and data/fineweb.py have in
common.

A set NAME in a folder is

    NAME_val_000000.bin, NAME_train_000001.bin, ...   token files as in data/tokens.h,
                                                      all but the last of equal length
    tokenizer.bin       for samples, see data/tokenizer.h
    NAME_state.json     what was asked for, what each finished shard holds, and where in the
                        source the next one begins; with a hash of all this
    source.txt          when complete: one line that names the text; the trainers print it

An end-of-text token stands before each document; shards cut documents where they are full. The
order of documents is a function of (source, seed, shuffle buffer): the source's files in random
order, and in that stream each block of `buffer` documents in random order. A running buffer would
mix a little better, but what is left in it would have to be stored to go on after a stop; a block
is known by the place at which it begins.

A shard is written as .part and synced; then NAME_state.json, which says that it is finished, is
replaced; then the shard gets its name. A run that starts finishes the third step if it must and
goes on from the state, so that a stop at any moment loses the shard in work and nothing else, and
the files end up the same bytes as without it. Before that it checks all that it builds on: the
state, the finished shards and the files of --input have the sha256 that was noted. To find its
place it then reads again at most one file of the source and, in it, up to one block. Python 3.7 or
newer; reading from the Hugging Face hub needs the package datasets, 3.2 or newer.
"""
import argparse
import array
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import random
import struct
import sys

import gpt2_bpe
from shakespeare_char import (DataError, Parser, TOKENS_MAGIC, TOKENS_VERSION, each_removed,
                              file_read, file_sync, folders_missing, line_print, sha256_of,
                              signal_raise, signals_set, text_printable)

HEADER_BYTES = 1024
TOKENS_MAX = 2**31 - 1                 # the header counts in int32
BATCH = 256                            # documents encoded at a time


def header_pack(tokens, V=gpt2_bpe.V):
    return struct.pack("<256i", TOKENS_MAGIC, TOKENS_VERSION, tokens, V, *[0] * 252)


def tokens_pack(tokens):
    """The bytes of an array of uint16."""
    if sys.byteorder == "big":
        tokens = tokens[:]
        tokens.byteswap()
    return tokens.tobytes()


def rest_hash(f):
    digest = hashlib.sha256()
    for block in iter(lambda: f.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


# ----------------------------------------------------------------------------
# sources: files of documents. identity() is what has to be the same when a run goes on

class LocalSource:
    """Files with a JSON object {"text": ...} per line; empty lines are skipped."""
    def __init__(self, paths):
        self.paths = [os.path.abspath(path) for path in paths]
        self.files = len(paths)
        self.found = []
        for path in self.paths:
            with self.failures(path), open(path, "rb") as f:
                self.found.append([path, os.fstat(f.fileno()).st_size, rest_hash(f)])
        names = self.paths[0] + (" and %d more" % (self.files - 1) if self.files > 1 else "")
        self.name = text_printable(names)[:300]

    def identity(self):
        return self.found

    def documents(self, file, skip):
        path = self.paths[file]
        with self.failures(path), open(path, "rb") as f:
            lines = ((n, line) for n, line in enumerate(f, 1) if line.strip())
            for n, line in itertools.islice(lines, skip, None):
                yield self.text(path, n, line)

    @staticmethod
    @contextlib.contextmanager
    def failures(path):
        try:
            yield
        except OSError as e:
            raise DataError("--input %s: %s; expected a file with a JSON object per line"
                            % (path, e.strerror))

    @staticmethod
    def text(path, n, line):
        try:
            text = json.loads(line.decode("utf-8"))["text"]
            if isinstance(text, str):
                return text
            what = 'a "text" that is no string'
        except UnicodeDecodeError as e:
            what = "byte 0x%02x, which is not UTF-8" % line[e.start]
        except (ValueError, KeyError, TypeError, RecursionError):
            what = "%.60r" % line
        raise DataError('%s, line %d: found %s, expected a JSON object {"text": "..."}'
                        % (path, n, what))


def hub_name(path, config):
    return path + (" " + config if config else "")


class HubSource:
    """A data set of the Hugging Face hub, streamed. The revision is fixed when a set is begun."""
    def __init__(self, path, config, revision):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
        self.name = hub_name(path, config)
        self.path, self.config, self.revision = path, config, revision
        try:
            import datasets
            import huggingface_hub
        except ImportError as e:
            raise DataError("%s: cannot import the package it is read with (%s): pip install "
                            "datasets tiktoken; "
                            "or use --input FILE.jsonl" % (self.name, e))
        datasets.logging.set_verbosity_error()
        with self.failures():
            if not os.path.isdir(path):  # tests read a folder through the same calls
                self.revision = huggingface_hub.HfApi().dataset_info(path, revision=revision).sha
            # Of a parquet file only the column of texts is read.
            self.stream = datasets.load_dataset(path, config, split="train", streaming=True,
                                                revision=self.revision,
                                                columns=["text"])
            if not hasattr(self.stream, "shard"):
                raise DataError("%s: found datasets %s, expected 3.2 or newer: pip install -U "
                                "datasets"
                                % (self.name, datasets.__version__))
            self.files = self.stream.num_shards

    @contextlib.contextmanager
    def failures(self):
        try:
            yield
        except DataError:
            raise
        except Exception as e:  # the network's, the hub's and pyarrow's errors have no common class
            why = (str(e) or type(e).__name__).strip().split("\n")[0]
            what = "check the network and run the same command again, it goes on where it stopped"
            if "script" in why:
                what = "try another --revision, see --help"
            raise DataError("%s: cannot read it from the Hugging Face hub: %s; %s; or use "
                            "--input FILE.jsonl" % (self.name, why, what))

    def identity(self):
        return [self.path, self.config, self.revision, self.files]

    def documents(self, file, skip):
        with self.failures():
            part = self.stream.shard(num_shards=self.files, index=file)
            for row in part.skip(skip) if skip else part:
                yield row["text"]


# ----------------------------------------------------------------------------
# order

def order_make(settings, files):
    order = list(range(files))
    if settings["shuffle_buffer"]:
        random.Random("%d files" % settings["seed"]).shuffle(order)
    return order


def stream_open(source, order, file, skip):
    """Yields (text, place after it) from document `skip` of the file that is number `file` in the
    order."""
    for k in range(file, len(order)):
        for text in source.documents(order[k], skip):
            skip += 1
            yield text, (k, skip)
        skip = 0


def blocks_open(source, settings, file, skip):
    """Yields (place at which the block begins, its texts in their order) from a place at which a
    block begins."""
    stream = stream_open(source, order_make(settings, source.files), file, skip)
    place = (file, skip)
    while True:
        block = list(itertools.islice(stream, settings["shuffle_buffer"] or BATCH))
        if not block:
            return
        texts = [text for text, _ in block]
        if settings["shuffle_buffer"]:
            random.Random("%d %d %d" % (settings["seed"], *place)).shuffle(texts)
        yield place, texts
        place = block[-1][1]


def tokens_open(encoder, source, settings, begin):
    """Yields (where it begins, tokens) of each document from `begin` on; where = file, skip,
    emitted: that many documents of the block that begins at (file, skip) come before it."""
    emitted = begin["emitted"]
    for (file, skip), texts in blocks_open(source, settings, begin["file"], begin["skip"]):
        for first in range(emitted, len(texts), BATCH):
            for k, ids in enumerate(encoder.encode_many(texts[first:first + BATCH]), first):
                place = {"file": file, "skip": skip, "emitted": k}
                yield place, array.array("H", [gpt2_bpe.END_OF_TEXT] + ids)
        emitted = 0


# ----------------------------------------------------------------------------
# the state of a set

def settings_make(args):
    settings = {"tokens_per_shard": args.tokens_per_shard, "max_tokens": args.max_tokens,
                "seed": args.seed, "shuffle_buffer": args.shuffle_buffer}
    return dict(settings, revision=args.revision) if args.revision else settings


def shard_name(name, index):
    return "%s_%s_%06d.bin" % (name, "train" if index else "val", index)


def state_path(out, name):
    return os.path.join(out, name + "_state.json")


def folder_sync(out):
    folder = os.open(out, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_replace(path, data):
    temporary = path + ".tmp"
    each_removed(os.unlink, [temporary])
    try:
        file_sync(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        each_removed(os.unlink, [temporary])
        raise
    folder_sync(os.path.dirname(path))


def state_pack(state):
    return json.dumps(state, indent=1).encode("ascii")


def state_write(out, name, state):
    whole = dict(state, sha256=sha256_of(state_pack(state)))
    file_replace(state_path(out, name), state_pack(whole) + b"\n")


def state_read(out, name, settings):
    """The state of an earlier run, None where there was none. An earlier run with other options is
    an error."""
    path = state_path(out, name)
    try:
        with open(path, "rb") as f:
            state = json.loads(f.read().decode("ascii"))
        if state.pop("sha256") != sha256_of(state_pack(state)):
            raise ValueError
    except FileNotFoundError:
        first = os.path.join(out, shard_name(name, 0))
        if os.path.lexists(first):
            raise DataError("%s: found a shard without %s, which would say how it was made; use "
                            "another --out"
                            % (first, os.path.basename(path)))
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError("%s: found no state of an earlier run, or a damaged one; remove the set "
                        "%s_* or use another --out" % (path, name))
    for key, value in settings.items():
        found = state["settings"].get(key)
        if found != value:
            option = "--" + key.replace("_", "-")
            begun = "without " + option if found is None else "with %s %s" % (option, found)
            raise DataError("%s: the set was begun %s, this command says %s; repeat that one or "
                            "use another --out" % (path, begun, value))
    return state


def shard_check(out, shard):
    path = os.path.join(out, shard["name"])
    expected = HEADER_BYTES + 2 * shard["tokens"]
    try:
        with open(path, "rb") as f:
            header, size = f.read(HEADER_BYTES), os.fstat(f.fileno()).st_size
            found = rest_hash(f)
    except OSError as e:
        raise DataError("%s: %s; expected a finished shard; remove the set or use another --out"
                        % (path, e.strerror))
    if header != header_pack(shard["tokens"]) or size != expected:
        raise DataError("%s: found %d bytes and a header of %s tokens, expected %d bytes and %d "
                        "tokens; remove the set or "
                        "use another --out"
                        % (path, size, struct.unpack_from("<3i", header + bytes(12))[2], expected,
                           shard["tokens"]))
    if found != shard["sha256 of tokens"]:
        raise DataError("%s: found tokens with sha256 %s, expected %s; remove the set or use "
                        "another --out" % (path, found, shard["sha256 of tokens"]))


def shards_settle(out, state):
    """After a stop between the state and the last shard's name; then everything has to be as the
    state says."""
    if state["shards"]:
        path = os.path.join(out, state["shards"][-1]["name"])
        if not os.path.lexists(path) and os.path.exists(path + ".part"):
            os.replace(path + ".part", path)
            folder_sync(out)
    for shard in state["shards"]:
        shard_check(out, shard)


# ----------------------------------------------------------------------------
# writing

def tokenizer_path(out):
    return os.path.join(out, "tokenizer.bin")


def tokenizer_write(out, encoder):
    file_replace(tokenizer_path(out), gpt2_bpe.tokenizer_pack(encoder))


def others_check(out, encoder):
    """Another data set's files must not be lost; source.txt is written last."""
    path, source = tokenizer_path(out), os.path.join(out, "source.txt")
    if os.path.isfile(path) and file_read(path, path) != gpt2_bpe.tokenizer_pack(encoder):
        raise DataError("%s: found the tokenizer of another vocabulary; use another --out, or "
                        "remove it" % path)
    if os.path.lexists(source):
        raise DataError("%s: found that of another data set; use another --out, or remove it"
                        % source)


class Writer:
    """The shards of a set, from the first that the state does not have."""
    def __init__(self, out, name, state, encoder):
        self.out, self.name, self.state, self.encoder = out, name, state, encoder
        self.total = sum(shard["tokens"] for shard in state["shards"])
        self.file = None

    def begin(self):
        self.index = len(self.state["shards"])
        self.path = os.path.join(self.out, shard_name(self.name, self.index))
        self.tokens = self.documents = 0
        self.hash = hashlib.sha256()
        each_removed(os.unlink, [self.path + ".part"])
        self.file = open(self.path + ".part", "xb")
        self.file.write(bytes(HEADER_BYTES))

    def room(self):
        settings = self.state["settings"]
        left = settings["max_tokens"] - self.total if settings["max_tokens"] else TOKENS_MAX
        return min(left, settings["tokens_per_shard"] - (self.tokens if self.file else 0))

    def add(self, tokens, begins):
        if not self.file:
            self.begin()
        data = tokens_pack(tokens)
        self.file.write(data)
        self.hash.update(data)
        self.tokens += len(tokens)
        self.total += len(tokens)
        self.documents += begins

    def finish(self, place, complete):
        """See the top of this file for the order of these steps."""
        self.file.seek(0)
        self.file.write(header_pack(self.tokens))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.file = None                   # from here on abandon() must leave the .part alone
        shard = {"name": os.path.basename(self.path), "tokens": self.tokens,
                 "documents": self.documents,
                 "sha256 of tokens": self.hash.hexdigest()}
        if self.index == 0:
            tokenizer_write(self.out, self.encoder)
        self.state["shards"].append(shard)
        self.state["next"], self.state["complete"] = place, complete
        state_write(self.out, self.name, self.state)
        os.replace(self.path + ".part", self.path)
        folder_sync(self.out)
        shard_check(self.out, shard)
        print("shard    %(name)s, %(tokens)d tokens, %(documents)d documents" % shard, flush=True)

    def abandon(self):
        if self.file:
            each_removed(os.unlink, [self.path + ".part"])
            with contextlib.suppress(OSError):  # closing writes what a full disk refused before
                self.file.close()
            self.file = None


def shards_write(writer, documents):
    """All shards that are still missing."""
    settings, place = writer.state["settings"], writer.state["next"]
    # Tokens of the first document that stand in finished shards.
    done = place["done"]
    for where, tokens in documents:
        while done < len(tokens):
            if writer.room() == 0:         # only now: without this token the set may end here
                writer.finish(place, False)
            n = min(writer.room(), len(tokens) - done)
            writer.add(tokens[done:done + n], begins=done == 0)
            done += n
            place = dict(where, done=done)
            if writer.total == settings["max_tokens"]:
                writer.finish(place, True)
                return
        done = 0
    if writer.total <= settings["tokens_per_shard"]:
        raise DataError("the source has %d tokens, which leaves none for training after a "
                        "validation shard of %d; "
                        "lower --tokens-per-shard" % (writer.total, settings["tokens_per_shard"]))
    writer.finish(place, True)


@contextlib.contextmanager
def folder_locked(out):
    """One run per folder. The lock goes with the process, however it ends."""
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        raise DataError("%s: another run writes into it; wait for it or use another --out" % out)
    try:
        yield
    finally:
        os.close(folder)


def source_check(out, name, begun, found):
    if begun != found:
        raise DataError("%s: the set was begun from %s, this command reads %s; repeat that one or "
                        "use another --out" % (state_path(out, name), begun, found))


def source_open(out, name, args, hub, state):
    """The files of --input, or the data set of the hub; of a set that is begun, the same again."""
    if args.input:
        source = LocalSource(args.input)
    else:
        source = HubSource(*hub, args.revision or (state["source"][2] if state else None))
    for pair in itertools.zip_longest(state["source"], source.identity()) if state else []:
        source_check(out, name, *pair)
    return source


def shards_continue(out, name, args, state, hub):
    """Returns the state of the complete set. Nothing is made before the source has given its first
    document."""
    settings = settings_make(args)
    source = source_open(out, name, args, hub, state)
    encoder = gpt2_bpe.encoder_open(args.encoder)
    begin = state["next"] if state else {"file": 0, "skip": 0, "emitted": 0, "done": 0}
    documents = tokens_open(encoder, source, settings, begin)
    first = list(itertools.islice(documents, 1))
    if not first and not state:
        raise DataError("%s: found no documents, expected at least one" % source.name)
    print("source   %s, %d files\nencoder  %s" % (source.name, source.files, encoder.name),
          flush=True)
    if state:
        print("going on after %d finished shards" % len(state["shards"]), flush=True)
    made = folders_missing(out)
    try:
        os.makedirs(out, exist_ok=True)
        with folder_locked(out):
            if state_read(out, name, settings) != state:
                raise DataError("%s: another run has just written into it; run the same command "
                                "again" % out)
            if state is None:
                others_check(out, encoder)
                state = {"settings": settings, "source": source.identity(),
                         "source name": source.name, "shards": [],
                         "next": begin, "complete": False}
            shards_settle(out, state)
            writer = Writer(out, name, state, encoder)
            try:
                shards_write(writer, itertools.chain(first, documents))
            finally:
                documents.close()
                writer.abandon()
    except BaseException as e:
        each_removed(os.rmdir, made)
        if not isinstance(e, OSError):
            raise
        raise DataError("cannot write into %s: %s; expected a folder that this user may write to, "
                        "with %d bytes free per "
                        "shard; free some and run the same command again, or use another --out"
                        % (out, e.strerror, HEADER_BYTES + 2 * args.tokens_per_shard))
    return state


def set_make(name, args, hub):
    """hub: path and config of the data set that is read without --input."""
    out = os.path.abspath(args.out)
    state = state_read(out, name, settings_make(args))
    # Another source, or files that are gone, are told even where nothing is left to do.
    if state and args.input:
        source_open(out, name, args, hub, state)
    elif state:
        source_check(out, name, state["source name"], hub_name(*hub))
    if state and state["complete"]:
        shards_settle(out, state)
    else:
        state = shards_continue(out, name, args, state, hub)
    if not os.path.exists(tokenizer_path(out)):
        tokenizer_write(out, gpt2_bpe.encoder_open(args.encoder))
    documents, tokens = (sum(shard[key] for shard in state["shards"]) for key in ("documents",
                                                                                  "tokens"))
    line = "%s, %d documents, %d GPT-2 tokens, seed %d, shuffle buffer %d" % (
        state["source name"], documents, tokens, args.seed, args.shuffle_buffer)
    file_replace(os.path.join(out, "source.txt"), (line + "\n").encode("utf-8"))
    print("text     %s" % line)
    print("tokens   %d train in %d shards, %d val"
          % (tokens - state["shards"][0]["tokens"], len(state["shards"]) - 1,
                                                    state["shards"][0]["tokens"]))
    print("files    %s ... %s, tokenizer.bin, source.txt in %s"
          % (state["shards"][0]["name"], state["shards"][-1]["name"], args.out), flush=True)


# ----------------------------------------------------------------------------
# options and main of the scripts

def count_parse(text):
    """100000000 or 1e8."""
    value = float(text)
    if not 0 <= value < 2**63 or value != int(value):
        raise ValueError
    return int(text) if text.isdigit() else int(value)


count_parse.__name__ = "count"             # argparse names it in its message


def encoder_option(parser):
    parser.add_argument("--encoder", choices=("auto", "tiktoken", "own"), default="auto",
                        help="tiktoken, data/gpt2_bpe.py, or the first of them that works "
                             "(default %(default)s)")


def parser_make(about, out):
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=out,
                        help="folder to write into (default %s)"
                             % ("%(default)s" if out else "see above"))
    parser.add_argument("--input", metavar="FILE", nargs="+",
                        help='read these files, a JSON object {"text": ...} per line, instead of '
                             'the hub')
    parser.add_argument("--revision", help="revision of the data set on the hub (default: the "
                                           "newest when a set is begun)")
    parser.add_argument("--tokens-per-shard", type=count_parse, default=10**8, metavar="N",
                        help="default 1e8")
    parser.add_argument("--max-tokens", type=count_parse, default=0, metavar="N",
                        help="stop after N tokens; 0 = all")
    parser.add_argument("--seed", type=count_parse, default=1337, metavar="N",
                        help="order of documents, default 1337")
    parser.add_argument("--shuffle-buffer", type=count_parse, default=10000, metavar="N",
                        help="documents that are mixed at a time, default 10000; 0 = the source's "
                             "own order")
    encoder_option(parser)
    return parser


def args_check(args):
    if not 1 <= args.tokens_per_shard <= TOKENS_MAX:
        raise DataError("--tokens-per-shard: found %d, expected 1 to %d"
                        % (args.tokens_per_shard, TOKENS_MAX))
    if args.max_tokens and args.max_tokens <= args.tokens_per_shard:
        raise DataError("--max-tokens: found %d, expected 0 or more than --tokens-per-shard %d: "
                        "the first shard is for "
                        "validation" % (args.max_tokens, args.tokens_per_shard))
    return args


def script_main(run, stopped, argv):
    """The main of a script: run(argv), with failures told in one line. `stopped` says what a signal
    left."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    signals_set(signal_raise)
    try:
        run(argv)
        return 0
    except (DataError, OSError, MemoryError) as e:
        line_print("error: " + (str(e) or type(e).__name__))
    except KeyboardInterrupt as e:
        line_print("error: stopped by %s; %s" % (e, stopped))
    return 1
