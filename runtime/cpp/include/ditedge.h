/* ditedge: sample images from a bundle (docs/format.md). One header, C89, for C, C++ and foreign-function interfaces.
 *
 * Every function that can fail returns a ditedge_status; ditedge_last_error() of the same thread says what happened, in
 * one sentence. No C++ exception crosses this interface. Structs begin with their own size: fill them with their _init
 * function, which is told the caller's size, so that a newer library never writes past an older caller's struct. What a
 * function gives through a pointer is NULL, 0 or -1 (a class) when it fails.
 *
 * Threads: a ditedge_bundle may be used by any number of threads at once. A ditedge_session belongs to one thread at a
 * time, except ditedge_cancel and ditedge_cancel_request, which any thread may call (a signal handler only the first). Close
 * handles when nobody uses them; closing NULL does nothing. A session keeps what it needs of its bundle: the two may be
 * closed in any order. A session belongs to the process that opened it: after fork() the child opens its own.
 */
#ifndef DITEDGE_H
#define DITEDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(DITEDGE_STATIC)
#define DITEDGE_API
#elif defined(__GNUC__)
#define DITEDGE_API __attribute__((visibility("default")))
#else
#define DITEDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What this header belongs to; ditedge_version_number() is what runs. 0.1.0 is 100, 1.2.3 is 10203. */
#define DITEDGE_VERSION_MAJOR 0
#define DITEDGE_VERSION_MINOR 1
#define DITEDGE_VERSION_PATCH 0
#define DITEDGE_VERSION_NUMBER (DITEDGE_VERSION_MAJOR * 10000 + DITEDGE_VERSION_MINOR * 100 + DITEDGE_VERSION_PATCH)

typedef enum ditedge_status {
    DITEDGE_OK = 0,
    DITEDGE_ERROR_ARGUMENT = 1,  /* a null pointer, a buffer of the wrong size, a struct of an unknown size */
    DITEDGE_ERROR_BUNDLE = 2,    /* damaged, tampered with, or of another version */
    DITEDGE_ERROR_PROGRAM = 3,   /* a sampler table that makes no sense */
    DITEDGE_ERROR_REQUEST = 4,   /* labels, guidance, programs that do not fit the bundle */
    DITEDGE_ERROR_ENGINE = 5,    /* an engine library is missing, or refuses the graph */
    DITEDGE_ERROR_NO_DEVICE = 6, /* no CUDA device */
    DITEDGE_CANCELLED = 7,       /* ditedge_cancel was called */
    DITEDGE_ERROR_MEMORY = 8,
    DITEDGE_ERROR_INTERNAL = 9,   /* a bug */
    DITEDGE_ERROR_NOT_FINITE = 10 /* images became infinite or NaN: they are zeros, the others are written */
} ditedge_status;

typedef struct ditedge_bundle ditedge_bundle;
typedef struct ditedge_session ditedge_session;
typedef struct ditedge_run ditedge_run;
typedef struct ditedge_prompt ditedge_prompt;

/* What a bundle is. Pixels are 0 x 0 x 0 when it has no decoder. A model takes classes, or prompts (prompt_tokens is not 0); those that
 * take prompts make pictures of other sizes, too: latents and images here are those of the model's own. */
typedef struct ditedge_info {
    size_t size;
    int64_t num_classes;
    int64_t null_class; /* -1: trained without label dropout, cannot be guided */
    int64_t latent_channels, latent_height, latent_width;
    int64_t image_height, image_width, image_channels;
    double default_guidance;
    int64_t prompt_tokens; /* that a prompt may have; 0: the model takes classes, and so are the three below */
    int64_t size_multiple, size_largest; /* width and height of a picture are multiples of the one up to the other, in pixels */
    int64_t size_factor;                 /* pixels of a picture per pixel of its latent, along a side */
    int64_t text_encoders;               /* how many lists of token ids a prompt has */
} ditedge_info;

typedef struct ditedge_session_options {
    size_t size;
    const char* engine;   /* "onnxruntime" (NULL is the same); where compiled in "tensorrt", "tensorrt-rtx": the bundle's
                           * plans in engines/tensorrt or engines/tensorrt-rtx, on a GPU */
    const char* provider; /* of ONNX Runtime: "cpu" (NULL), "cuda" (everything stays on the GPU) or a provider's full name */
    const char* library;  /* path of the engine's shared library; NULL: $DITEDGE_ONNXRUNTIME or $DITEDGE_TENSORRT, then the
                           * system's. CUDA's runtime is $DITEDGE_CUDART, or the system's */
    int32_t threads;      /* 0: one for each core. Never more than the processors that this process may use, by its
                           * affinity and its container's CPU quota: a larger number means all of them */
    int32_t device;       /* CUDA device number */
    int32_t spin;     /* not 0: ONNX Runtime's idle threads spin, which is quicker by a little and keeps them busy */
    int32_t tf32;         /* not 0: CUDA may round float32 products to 10 bits of fraction (TF32), for speed */
    int32_t no_cuda_graph; /* not 0: plans enqueue each step anew instead of replaying CUDA graphs: slower, for a driver or a
                            * tool that cannot capture */
} ditedge_session_options;

/* Pointers are valid during the callback only. */
typedef struct ditedge_progress {
    size_t size;
    int64_t done, total; /* network steps over all batches */
    int64_t first;       /* index of the running batch's first image */
    int64_t batch;       /* images in it */
    const float* latents; /* [batch, C, H, W]; NULL on engines that keep them on a device */
} ditedge_progress;

typedef struct ditedge_preview {
    size_t size;
    int64_t step; /* steps done of this batch */
    int64_t first, batch;
    int64_t height, width, channels;
    const uint8_t* images; /* [batch, height, width, channels]: the estimate of the finished pictures */
} ditedge_preview;

typedef struct ditedge_params {
    size_t size;
    int64_t count;            /* images */
    const int64_t* labels;    /* [count] classes; NULL where the model takes prompts */
    const uint64_t* seeds;    /* [count]; the same seed gives the same image alone and in any batch */
    const int64_t* away_from; /* [count] classes to guide away from, -1 for none; or NULL */
    double guidance;          /* 1: none; NaN: the bundle's default */
    const char* program;      /* name of a program of the bundle; NULL: its default */
    const char* program_file; /* a program's file instead, which need not be in the bundle; or NULL */
    int64_t batch;            /* images that share one run of the network; bounds memory */
    const float* initial_noise; /* [count, C, H, W] instead of seeds; or NULL */
    const float* step_noise;    /* [steps, count, C, H, W], with initial_noise; NULL where the program adds no noise */
    size_t step_noise_bytes;    /* of step_noise: 4 * steps * count * C * H * W */
    void (*on_progress)(const ditedge_progress* progress, void* user); /* after each step; or NULL */
    void (*on_preview)(const ditedge_preview* preview, void* user);    /* after each preview_every steps; or NULL */
    void* user;                                                        /* handed to the callbacks */
    int64_t preview_every;
    uint64_t request;      /* the caller's number for this call, for ditedge_cancel_request; 0: none */
    int32_t check_finite;  /* not 0: look for infinity and NaN after every step, not only after the last one */
    int32_t other_process; /* not 0: take a program that was made for another prediction, other betas or timesteps */
    const ditedge_prompt* const* prompts;   /* [count], of a model that takes prompts; the same one may stand there several times */
    const ditedge_prompt* const* negatives; /* [count] to guide away from, NULL among them: the prompt of no words; or NULL */
    int64_t width, height;                  /* of the pictures in pixels, of a model that takes prompts; 0: the model's own */
} ditedge_params;

/* One image that is sampled step by step (ditedge_run_open). */
typedef struct ditedge_run_params {
    size_t size;
    int64_t label;
    uint64_t seed;
    int64_t away_from;         /* a class to guide away from; -1: none */
    double guidance;           /* 1: none; NaN: the bundle's default */
    const char* program;       /* name of a program of the bundle; NULL: its default */
    const char* program_file;  /* a program's file instead, which need not be in the bundle; or NULL */
    const float* given_latent; /* [C, H, W] to start from, for a program whose init says so; or NULL */
    int32_t other_process;     /* not 0: take a program that was made for another prediction, other betas or timesteps */
    const ditedge_prompt* prompt;   /* of a model that takes prompts, instead of the label */
    const ditedge_prompt* negative; /* to guide away from; NULL: the prompt of no words */
    int64_t width, height;          /* of the picture in pixels, of a model that takes prompts; 0: the model's own */
} ditedge_run_params;

/* Any thread. "0.1.0" */
DITEDGE_API const char* ditedge_version(void);
/* Any thread. The library's DITEDGE_VERSION_NUMBER. */
DITEDGE_API int ditedge_version_number(void);
/* Any thread. What the last failed call of this thread had to say; valid until this thread's next call. */
DITEDGE_API const char* ditedge_last_error(void);
/* Any thread. A short English name of a status. */
DITEDGE_API const char* ditedge_status_name(ditedge_status status);

/* Any thread. Opens the bundle at `path` (its folder) and checks every file's SHA-256. Files are opened once: what happens
 * to the folder later (chdir, moved, deleted) changes nothing, and what is written into its files is refused. check_hashes 0:
 * only sizes are checked, so whoever can write to the files decides what runs; for bundles that were just checked. */
DITEDGE_API ditedge_status ditedge_bundle_open(const char* path, int check_hashes, ditedge_bundle** bundle);
/* Any thread. The same, hashes checked, for a bundle that one of `count` trusted keys signed (`ditedge sign`): paths of PEM
 * files, Ed25519 public keys. Nothing of it is read before its signature was checked, and its plans have to be signed, too.
 * OpenSSL's libcrypto is loaded for it: $DITEDGE_CRYPTO, or the system's. Where the environment variable
 * DITEDGE_TRUSTED_KEYS is set (paths with ':' between them), ditedge_bundle_open does so, too, by those keys. */
DITEDGE_API ditedge_status ditedge_bundle_open_trusted(const char* path, const char* const* keys, size_t count,
                                                       ditedge_bundle** bundle);
DITEDGE_API void ditedge_bundle_close(ditedge_bundle* bundle);
/* Any thread, as all of ditedge_bundle_*. info->size must be set to sizeof(ditedge_info). */
DITEDGE_API ditedge_status ditedge_bundle_info(const ditedge_bundle* bundle, ditedge_info* info);
/* Names are owned by the bundle; NULL when the index is out of range (or classes have no names). */
DITEDGE_API const char* ditedge_class_name(const ditedge_bundle* bundle, int64_t index);
DITEDGE_API int64_t ditedge_program_count(const ditedge_bundle* bundle);
DITEDGE_API const char* ditedge_program_name(const ditedge_bundle* bundle, int64_t index);
DITEDGE_API const char* ditedge_default_program(const ditedge_bundle* bundle);
DITEDGE_API int64_t ditedge_graph_count(const ditedge_bundle* bundle);
DITEDGE_API const char* ditedge_graph_name(const ditedge_bundle* bundle, int64_t index);
/* Steps of a program by name; NULL: the default. */
DITEDGE_API ditedge_status ditedge_program_steps(const ditedge_bundle* bundle, const char* name, int64_t* steps);
/* Steps of a program's file, as a program_file of ditedge_params: step_noise is as long as that. */
DITEDGE_API ditedge_status ditedge_program_file_steps(const char* file, int64_t* steps);
/* A class by its number, its name, or one of its comma-separated names; the case of A to Z does not matter. */
DITEDGE_API ditedge_status ditedge_find_class(const ditedge_bundle* bundle, const char* text, int64_t* label);

/* Any thread. A prompt by its token ids, as the bundle's tokenizers make them: a list for each text encoder, one after another in
 * `ids`, of `counts` each (most models have one: &count, 1). Where the model has an instruction (Sana), its tokens
 * stand before those of the words; where the prompt is one to guide away from, there is none before them. The graph `text` reads them,
 * which is loaded when it is needed first. A prompt may be used by any number of threads at once, and closed when no call uses it (runs
 * keep what they need of theirs); the bundle may be closed before. A session computes what depends on a prompt alone once, and
 * keeps it: two prompts of the same tokens are one. */
DITEDGE_API ditedge_status ditedge_prompt_of_ids(const ditedge_bundle* bundle, const int64_t* ids, const size_t* counts, size_t lists,
                                                 ditedge_prompt** prompt);
/* Any thread. One that `ditedge encode` recorded (.safetensors) with the bundle's text encoder, which is not needed then. */
DITEDGE_API ditedge_status ditedge_prompt_open(const ditedge_bundle* bundle, const char* file, ditedge_prompt** prompt);
DITEDGE_API void ditedge_prompt_close(ditedge_prompt* prompt);

/* Any thread. `size` is the caller's sizeof. Sets every field to its default. */
DITEDGE_API ditedge_status ditedge_session_options_init(ditedge_session_options* options, size_t size);
DITEDGE_API ditedge_status ditedge_params_init(ditedge_params* params, size_t size);

/* Any thread. Loads the graphs. options may be NULL. */
DITEDGE_API ditedge_status ditedge_session_open(const ditedge_bundle* bundle, const ditedge_session_options* options,
                                                ditedge_session** session);
DITEDGE_API void ditedge_session_close(ditedge_session* session);
/* The session's thread. What went on otherwise than it was asked for, so far: plans that cannot be captured as a CUDA graph
 * run all the same, compiled kernels are not kept. NULL when there are not as many; sentences are owned by the session. */
DITEDGE_API const char* ditedge_session_warning(const ditedge_session* session, int64_t index);
/* One thread at a time. Writes uint8 [count, image_height, image_width, image_channels] (or params' height and width); bytes is
 * the buffer's size. */
DITEDGE_API ditedge_status ditedge_generate_images(ditedge_session* session, const ditedge_params* params,
                                                   uint8_t* images, size_t bytes);
/* One thread at a time. Writes float32 [count, C, H, W]; bytes is the buffer's size. */
DITEDGE_API ditedge_status ditedge_generate_latents(ditedge_session* session, const ditedge_params* params,
                                                    float* latents, size_t bytes);
/* One thread at a time. latents [count, C, H, W] -> images as above; DITEDGE_ERROR_NOT_FINITE where some latents are not. */
DITEDGE_API ditedge_status ditedge_decode(ditedge_session* session, const float* latents, int64_t count,
                                          uint8_t* images, size_t bytes);
/* The same for pictures of width x height pixels, of a model that takes prompts; 0: the model's own. */
DITEDGE_API ditedge_status ditedge_decode_size(ditedge_session* session, const float* latents, int64_t count, int64_t width,
                                               int64_t height, uint8_t* images, size_t bytes);
/* Images step by step, on ONNX Runtime: ditedge_advance takes one step of each in a batch, and they may be at different steps of
 * different programs, with guidance, prompts and sizes of their own, so a server can let an image in while others are on their way. Each becomes
 * the one that it is alone. A run is used by one thread at a time, with a session of the bundle that it was opened for.
 *
 *     while (done < steps) { ditedge_advance(session, runs, count); ditedge_run_steps(runs[0], &done, &steps); }
 */
DITEDGE_API ditedge_status ditedge_run_params_init(ditedge_run_params* params, size_t size);
/* Any thread. Draws the initial noise; the bundle may be closed before the run. */
DITEDGE_API ditedge_status ditedge_run_open(const ditedge_bundle* bundle, const ditedge_run_params* params, ditedge_run** run);
DITEDGE_API void ditedge_run_close(ditedge_run* run);
/* One thread at a time. One step of each run, none given twice; nothing for one that is done. Where it fails, each run has
 * taken the step or has not: ditedge_run_steps tells, and the next call goes on from there. */
DITEDGE_API ditedge_status ditedge_advance(ditedge_session* session, ditedge_run* const* runs, size_t count);
/* Steps that a run has done, and all that its program has. */
DITEDGE_API ditedge_status ditedge_run_steps(const ditedge_run* run, int64_t* done, int64_t* steps);
/* Writes float32 [C, H, W]: where the image is, and when it is done the sample, for ditedge_decode; bytes is the buffer's size. */
DITEDGE_API ditedge_status ditedge_run_latent(const ditedge_run* run, float* latent, size_t bytes);

/* Any thread, and a signal handler, also during a call on the session, which then returns DITEDGE_CANCELLED: on ONNX Runtime within its step or
 * decoder, on a GPU after the steps that are enqueued, eight at most. Only the call that is running: a cancel that comes
 * when it has ended does not touch the next one. */
DITEDGE_API void ditedge_cancel(ditedge_session* session);
/* The same for all generate calls with a params.request of 1 to `request`, whether they run or are still to come: so a
 * cancel may come early, too. Callers that need this number their calls upwards. Not in a signal handler: it takes a lock. */
DITEDGE_API void ditedge_cancel_request(ditedge_session* session, uint64_t request);

/* Any thread. [count] standard normal numbers: draw 0 is a seed's initial noise, draw n + 1 its noise of step n. */
DITEDGE_API ditedge_status ditedge_noise(uint64_t seed, uint64_t draw, float* numbers, size_t count);

#ifdef __cplusplus
}
#endif
#endif
