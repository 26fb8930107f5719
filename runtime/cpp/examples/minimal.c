/* A bundle to a picture in C: minimal BUNDLE CLASS SEED OUT.pgm */
#include <ditedge.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char* what) {
    fprintf(stderr, "%s: %s\n", what, ditedge_last_error());
    return 1;
}

int main(int argc, char** argv) {
    ditedge_bundle* bundle = NULL;
    ditedge_session* session = NULL;
    ditedge_info info;
    ditedge_params params;
    int64_t label;
    uint64_t seed;
    uint8_t* image = NULL;
    size_t bytes;
    FILE* file;
    int bad = 1;
    if (argc != 5 || argv[3][strspn(argv[3], "0123456789")] != '\0') return fprintf(stderr, "usage: %s BUNDLE CLASS SEED OUT.pgm\n", argv[0]), 1;
    info.size = sizeof info;
    if (ditedge_bundle_open(argv[1], 1, &bundle) || ditedge_bundle_info(bundle, &info)) return failed("bundle");
    bytes = (size_t)(info.image_height * info.image_width * info.image_channels);
    image = malloc(bytes + 1);
    seed = strtoull(argv[3], NULL, 10);
    ditedge_params_init(&params, sizeof params);
    params.count = 1, params.labels = &label, params.seeds = &seed;
    if (ditedge_find_class(bundle, argv[2], &label) || ditedge_session_open(bundle, NULL, &session) ||
        ditedge_generate_images(session, &params, image, bytes)) {
        failed("sampling");
    } else if ((file = fopen(argv[4], "wb")) != NULL) {
        fprintf(file, "P%d\n%d %d\n255\n", info.image_channels == 1 ? 5 : 6, (int)info.image_width, (int)info.image_height);
        bad = fwrite(image, 1, bytes, file) != bytes;
        bad |= fclose(file) != 0;
    }
    free(image), ditedge_session_close(session), ditedge_bundle_close(bundle);
    return bad;
}
