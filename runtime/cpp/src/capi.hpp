// What the functions of the C interface share: handles, exceptions as status codes, structs of other versions.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "bundle.hpp"
#include "ditedge.h"
#include "engine.hpp"
#include "error.hpp"
#include "image_run.hpp"
#include "prompts.hpp"

struct ditedge_bundle {
    std::shared_ptr<const ditedge::Bundle> bundle;
};

struct ditedge_prompt {
    std::shared_ptr<const ditedge::Bundle> bundle;
    ditedge::PromptPointer prompt;
};

struct ditedge_run {
    ditedge::ImageRun image;
};

struct ditedge_session {
    std::shared_ptr<const ditedge::Bundle> bundle;
    std::unique_ptr<ditedge::Loop> loop;
    pid_t process = getpid();
    std::mutex mutex;  // of the two below
    std::uint64_t request = 0, cancelled_requests = 0;  // of the call that is going on, or 0; requests up to this number
};

namespace ditedge {

// Keeps what ditedge_last_error of this thread says.
ditedge_status failed(ditedge_status status, const char* message) noexcept;
void forget_failure() noexcept;

template <class Body>
ditedge_status guarded(const Body& body) noexcept {
    forget_failure();
    try {
        body();
        return DITEDGE_OK;
    } catch (const Error& error) {
        return failed(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return failed(DITEDGE_ERROR_MEMORY, "out of memory");
    } catch (const std::length_error&) {
        return failed(DITEDGE_ERROR_MEMORY, "out of memory: a buffer of impossible size was asked for");
    } catch (const std::exception& error) {
        return failed(DITEDGE_ERROR_INTERNAL, error.what());
    } catch (...) {
        return failed(DITEDGE_ERROR_INTERNAL, "unknown exception");
    }
}

inline void require(bool condition, const char* complaint) {
    if (!condition) throw Error(DITEDGE_ERROR_ARGUMENT, complaint);
}

// Where each field begins: a struct of another version ends where one of ours begins, or where ours ends.
#define AT(field) offsetof(T, field)
template <class T>
bool ends_at_a_field(std::size_t size) {
    std::vector<std::size_t> ends = {sizeof(T)};
    if constexpr (std::is_same_v<T, ditedge_info>)
        ends.insert(ends.end(), {AT(num_classes), AT(null_class), AT(latent_channels), AT(latent_height), AT(latent_width),
                                 AT(image_height), AT(image_width), AT(image_channels), AT(default_guidance), AT(prompt_tokens),
                                 AT(size_multiple), AT(size_largest), AT(size_factor), AT(text_encoders)});
    else if constexpr (std::is_same_v<T, ditedge_session_options>)
        ends.insert(ends.end(), {AT(engine), AT(provider), AT(library), AT(threads), AT(device), AT(spin), AT(tf32), AT(no_cuda_graph)});
    else if constexpr (std::is_same_v<T, ditedge_run_params>)
        ends.insert(ends.end(), {AT(label), AT(seed), AT(away_from), AT(guidance), AT(program), AT(program_file),
                                 AT(given_latent), AT(other_process), AT(prompt), AT(negative), AT(width), AT(height)});
    else
        ends.insert(ends.end(), {AT(count), AT(labels), AT(seeds), AT(away_from), AT(guidance), AT(program), AT(program_file),
                                 AT(batch), AT(initial_noise), AT(step_noise), AT(step_noise_bytes), AT(on_progress),
                                 AT(on_preview), AT(user), AT(preview_every), AT(request), AT(check_finite), AT(other_process),
                                 AT(prompts), AT(negatives), AT(width), AT(height)});
    return std::find(ends.begin(), ends.end(), size) != ends.end();
}
#undef AT

// The caller's struct, which may be older (smaller) than ours: fields that it lacks keep their defaults.
template <class T>
T widened(const T* given, T defaults, const char* name) {
    if (given == nullptr) return defaults;
    if (!ends_at_a_field<T>(given->size))
        throw Error(DITEDGE_ERROR_ARGUMENT, std::string(name) + " was made for another version of this library: call its _init function");
    std::memcpy(&defaults, given, given->size);
    return defaults;
}

// Our struct, cut to the size of the caller's.
template <class T>
void narrowed(const T& value, T* given, std::size_t size, const char* name) {
    if (given == nullptr || !ends_at_a_field<T>(size))
        throw Error(DITEDGE_ERROR_ARGUMENT, std::string(name) + " is null or of a size that no version of this library has");
    std::memcpy(given, &value, size);
    given->size = size;
}

// What a function gives is nothing until it has something to give.
template <class T>
void clear(T* given, T nothing) {
    if (given != nullptr) *given = nothing;
}

// A call that is going on. No earlier cancel counts, unless it was meant for this one.
class Call {
public:
    Call(ditedge_session& session, std::uint64_t request) : session_(session) {
        if (session.process != getpid())
            fail_engine("the session was opened before fork(), in process " + std::to_string(session.process) +
                                 ", and its threads stayed there: open one in this process");
        const std::lock_guard<std::mutex> lock(session.mutex);
        session.loop->begin();
        if (request != 0 && request <= session.cancelled_requests)
            fail_cancelled("before its first step: request " + std::to_string(request) + " was cancelled");
        session.request = request;
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() {
        const std::lock_guard<std::mutex> lock(session_.mutex);
        session_.request = 0;
    }

private:
    ditedge_session& session_;
};

}  // namespace ditedge
