// The tokens of texts, for dev/test/bpe.sh:
//
//   dev/test/encode TOKENIZER <TEXTS
//
// Each text is a line with its length in bytes, then the bytes. Prints a line of ids for each, and
// on stderr at the end how many milliseconds encoding took.
#include "../../data/bpe.h"
#include <time.h>

static double milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

int main(int argc, char *argv[]) {
    Tokenizer tokenizer;
    size_t length;
    double spent = 0;
    if (argc != 2) fail("usage: dev/test/encode TOKENIZER <TEXTS");
    tokenizer_open(&tokenizer, argv[1]);
    while (scanf("%zu%*1[\n]", &length) == 1) {
        // Of the exact size, for a sanitizer to see the first step beyond.
        char *text = malloc(length);
        int32_t *ids = malloc(length * sizeof *ids);
        if ((length && (!text || !ids)) || fread(text, 1, length, stdin) != length) {
            fail("stdin: no %zu bytes", length);
        }
        double begin = milliseconds();
        int n = tokenizer_encode(&tokenizer, text, length, ids);
        spent += milliseconds() - begin;
        for (int i = 0; i < n; i++) printf("%s%d", i ? " " : "", ids[i]);
        printf("\n");
        free(text);
        free(ids);
    }
    fprintf(stderr, "%.1f\n", spent);
    tokenizer_close(&tokenizer);
}
