// Which pictures a caller may ask for, checked before any engine works (runtime/loop/request.py, subjects.py).
#pragma once

#include <vector>

#include "bundle.hpp"
#include "image_run.hpp"
#include "tables.hpp"

namespace ditedge {

constexpr std::int64_t kMaxImages = 1 << 20, kMaxBatch = 4096;
constexpr std::size_t kMaxIds = 1 << 20, kMaxLists = 16;  // of a prompt, before it is said how many the model reads

// What one image is asked to be of, and to be guided away from.
struct Wanted {
    std::int64_t label = 0, away_from = -1;
    const ditedge_prompt *prompt = nullptr, *negative = nullptr;
};

// All of these throw Error (request, argument, memory).

// H and W of the latent of a picture of width x height pixels; 0: the model's own.
Size latent_of(const Bundle& bundle, std::int64_t width, std::int64_t height);
double guidance_of(const Bundle& bundle, double given);  // NaN: the bundle's default
// What is left of it for a second evaluation: 1 where the network is told it.
double strength_of(const Bundle& bundle, double guidance);
Subject subject_of(const Bundle& bundle, const Wanted& wanted, double guidance, const Size& latent);
std::vector<Subject> subjects_of(const Bundle& bundle, const ditedge_params& params, const Size& latent);
void check_request(const Bundle& bundle, const ditedge_params& params, bool images);
// By name, or from a file; neither: the default of that size. One that does not fit the bundle is refused.
Program chosen_program(const Bundle& bundle, const char* name, const char* file, const Size& latent, bool other_process);
// Whether a caller's buffer is one of `count` things of `each` bytes: in 64 bits, whatever size_t is.
void check_bytes(std::size_t bytes, std::uint64_t each, std::int64_t count, const char* complaint);
// Where size_t has 32 bits, a product of sizes may be small again: what it should have been does not fit.
void check_room(double bytes);
// Given noise is as long as the program needs it. latent: numbers of one.
void check_noise(std::size_t latent, const Program& program, const ditedge_params& params);
// What a batch needs at least; and a step of images that go their own ways.
void check_memory(const Bundle& bundle, const Size& size, const Program& program, const ditedge_params& params);
void check_memory(const std::vector<ImageRun*>& images);

}  // namespace ditedge
