// The record: what a checkpoint says of the run that wrote it, so that a run that goes on stays the
// same run. These are lines of DONE (data/checkpoint.h):
//
//   run ID              hash of what the run began with; it stays when the run goes on
//   text HASH TOKENS    of -i
//   DP N                replicas
//   processes N         of a replica, where R or DP is more than 2
//   teacher HASH        of the model of -kd, where there is one
//   shape L 4 NH 4 ...  of the model
//   -i FILE             and so on: the options that are KEPT in data/options.h
#ifndef RECORD_H
#define RECORD_H

#include "checkpoint.h"
#include "options.h"

typedef struct {
    uint64_t id;
    uint64_t text;    // hash of the text
    size_t tokens;    // its length; 0: there was none
    int DP;           // 0: not known
    int processes;    // of a replica; 0: not known, or R and DP are at most 2
    uint64_t teacher; // hash of its file; 0: there was none
    GPT2Config shape; // L 0: not known
    Options options;  // those that stand in DONE are marked as given
} Record;

// The lines of a record. Fails when an option's value is none that a line can hold. A prompt of
// several lines, of PATH_MAX bytes or more, or from standard input, is not kept.
static void record_print(char out[DONE_BYTES], const Record *r) {
    const GPT2Config *c = &r->shape;
    char value[32];
    size_t n = (size_t)snprintf(out, DONE_BYTES, "run %016llx\ntext %016llx %zu\nDP %d\n"
                                "shape L %d NH %d C %d V %d maxT %d\n", (unsigned long long)r->id,
                                (unsigned long long)r->text, r->tokens, r->DP, c->L, c->NH, c->C,
                                c->V, c->maxT);
    if (r->processes) {
        n += (size_t)snprintf(out + n, DONE_BYTES - n, "processes %d\n", r->processes);
    }
    if (r->teacher) {
        n += (size_t)snprintf(out + n, DONE_BYTES - n, "teacher %016llx\n",
                              (unsigned long long)r->teacher);
    }
    for (int i = 0; i < O_COUNT; i++) {
        const char *flag = option_specs[i].flag, *text = option_value(&r->options, i, value);
        if (!(option_specs[i].marks & KEPT)) continue;
        int is_line = !strchr(text, '\n') && strlen(text) < PATH_MAX && strcmp(text, "-");
        if (i == O_prompt && !is_line) continue;
        if (strchr(text, '\n')) fail("%s: a line break in what checkpoints keep", flag);
        if (strlen(text) >= PATH_MAX) fail("%s: a value of %zu bytes", flag, strlen(text));
        n += (size_t)snprintf(out + n, DONE_BYTES - n, "%s %s\n", flag, text);
    }
}

// Takes the lines apart, which are those of the DONE at `path`. Texts stay in them.
static void record_parse(Record *r, char *lines, const char *path) {
    GPT2Config *c = &r->shape;
    if (*lines) { // older versions had no -pe
        option_set(&r->options, &option_specs[O_patterns], "");
        r->options.given[O_patterns] = 1;
    }
    for (char *line = lines, *next; *line; line = next) {
        unsigned long long hash;
        int i = 0;
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        size_t n = strcspn(line, " ");
        while (i < O_COUNT && (strlen(option_specs[i].flag) != n ||
                               strncmp(option_specs[i].flag, line, n))) {
            i++;
        }
        if (i < O_COUNT && option_specs[i].marks & KEPT && line[n]) {
            option_set(&r->options, &option_specs[i], line + n + 1);
            r->options.given[i] = 1;
        } else if (sscanf(line, "run %llx", &hash) == 1) {
            r->id = hash;
        } else if (sscanf(line, "text %llx %zu", &hash, &r->tokens) == 2) {
            r->text = hash;
        } else if (sscanf(line, "teacher %llx", &hash) == 1) {
            r->teacher = hash;
        } else if (sscanf(line, "shape L %d NH %d C %d V %d maxT %d", &c->L, &c->NH, &c->C, &c->V,
                          &c->maxT) == 5) {
            continue;
        } else if (sscanf(line, "DP %d", &r->DP) != 1 &&
                   sscanf(line, "processes %d", &r->processes) != 1) {
            fail("%s: '%s' is no line of it that this version knows", path, line);
        }
    }
}

// Options that are not given are taken from the record.
static void record_give_options(const Record *r, Options *o) {
    for (int i = 0; i < O_COUNT; i++) {
        if (r->options.given[i] && !o->given[i]) option_copy(o, &r->options, i);
    }
}

// Fails if the header of the model at `path` is not that of the run that the checkpoint is of.
static void record_check_model(const Record *r, const GPT2Config *found, const char *path) {
    Options options = r->options;
    const GPT2Config *c = &r->shape;
    if (!options.given[O_pattern] || !c->L) return;
    if (c->L != found->L || c->NH != found->NH || c->C != found->C || c->V != found->V ||
        c->maxT != found->maxT) {
        fail("%s: L %d NH %d C %d V %d maxT %d, expected L %d NH %d C %d V %d maxT %d", path,
             found->L, found->NH, found->C, found->V, found->maxT, c->L, c->NH, c->C, c->V,
             c->maxT);
    }
    if (pattern_is_plain(found->pattern) != pattern_is_plain(options.pattern)) {
        fail("%s: a model of -p %s, expected -p %s", path, found->pattern, options.pattern);
    }
    if (strcmp(found->patterns, options.patterns)) {
        fail("%s: a model of -pe '%s', expected -pe '%s'", path, found->patterns, options.patterns);
    }
    options_take_model(&options, found, path);
}

// Change number i (from 0) of what makes the numbers, in words: "-l 0.001 was 0.0003". Returns 0
// when there are no more.
static int record_change(const Record *was, const Record *is, int i, char *out, size_t size) {
    for (int k = 0; k < O_COUNT; k++) {
        char before[32], now[32];
        const char *x = option_value(&was->options, k, before);
        const char *y = option_value(&is->options, k, now);
        int matters = (option_specs[k].marks & NUMBERS) == NUMBERS && was->options.given[k];
        // Without a fall of the learning rate its updates to come do not depend on their number.
        int falls = is->options.schedule != SCHEDULE_CONSTANT && is->options.rate_last != 1;
        if (!matters || (k == O_updates && !falls) || !strcmp(x, y) || i--) continue;
        snprintf(out, size, "%s %s was %s", option_specs[k].flag, y[0] ? y : "''",
                 x[0] ? x : "''");
        return 1;
    }
    if (was->DP && was->DP != is->DP && !i--) {
        snprintf(out, size, "DP %d was %d", is->DP, was->DP);
        return 1;
    }
    int both_say = was->processes && is->processes;
    if (both_say && was->processes != is->processes && !i--) {
        snprintf(out, size, "processes per replica %d was %d", is->processes, was->processes);
        return 1;
    }
    if (was->DP && was->teacher != is->teacher && !i--) {
        snprintf(out, size, "the teacher of -kd, of hash %016llx, was %016llx (0: none)",
                 (unsigned long long)is->teacher, (unsigned long long)was->teacher);
        return 1;
    }
    int other_text = was->tokens != is->tokens || was->text != is->text;
    if (was->tokens && other_text && !i--) {
        snprintf(out, size, "the text of -i, %zu tokens of hash %016llx, was %zu of %016llx",
                 is->tokens, (unsigned long long)is->text, was->tokens,
                 (unsigned long long)was->text);
        return 1;
    }
    return 0;
}

#endif
