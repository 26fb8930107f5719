// What a step reads beside its tables where a model takes prompts: context of each prompt, positions of a size
// (runtime/loop/text_graphs.py). Graphs run once per distinct prompt and once per size, each prompt alone and padded to the
// same number of tokens: what becomes of one never depends on those beside it.
#pragma once

#include <array>
#include <functional>
#include <list>
#include <map>
#include <memory>

#include "conditions.hpp"
#include "engine.hpp"
#include "prompts.hpp"

namespace ditedge {

// What the graphs make of a batch's prompts and of its size, by the names of their outputs.
struct OfPrompts {
    std::shared_ptr<const std::vector<std::vector<float>>> numbers;  // of the prompts' tensors
    std::vector<Tensor> tensors;  // [P, ...] of these; and position [h, w, ...], valid until the next are made

    const Tensor* vector() const;  // [P, Q], where the conditioner reads it; else null
    // What the conditioner reads of the conditions' prompts, appended where it does.
    void add_vectors(const Conditions& conditions, std::vector<float>& vectors) const;
    // What the step reads: all but the vector.
    std::vector<Tensor> of_step() const;
};

// The text encoders of a bundle, larger than all its other graphs and for token ids only: each is loaded at first use.
class TextEncoders {
public:
    // cancelled: of the loop. A cancel of another thread sees a loaded encoder, or is seen here.
    TextEncoders(const Bundle& bundle, const EngineOptions& options, const std::atomic<bool>& cancelled)
        : bundle_(bundle), options_(options), cancelled_(cancelled) {}
    static bool has(const std::string& graph) { return graph.rfind("text", 0) == 0; }
    Engine& engine(const std::string& graph);
    void interrupt(bool stop) {
        for (const std::atomic<Engine*>& encoder : now_)
            if (Engine* const loaded = encoder.load()) loaded->interrupt(stop);
    }

private:
    const Bundle& bundle_;
    const EngineOptions options_;
    const std::atomic<bool>& cancelled_;
    std::map<std::string, std::unique_ptr<Engine>> loaded_;
    std::array<std::atomic<Engine*>, 4> now_{};  // those that are loaded, for other threads
};

// The prompts and sizes that were used, of one loaded bundle.
class TextGraphs {
public:
    TextGraphs(const Bundle& bundle, std::function<Engine&(const std::string&)> engine);
    // prompts: each once. Throws Error (request, cancelled).
    OfPrompts of(const std::vector<PromptPointer>& prompts, const Size& latent);

private:
    struct Made {
        std::string key;
        std::vector<std::vector<float>> outputs;  // of `context`, in its order
    };
    // Sizes of a graph's output where its open ones are these, in order.
    static std::vector<std::int64_t> shape_of(const TensorInfo& output, std::initializer_list<std::int64_t> open);
    const Made& made_of(const Prompt& prompt);
    // What is made of a batch's prompts end to end: gathered once while they are the same, step after step.
    std::shared_ptr<const std::vector<std::vector<float>>> together(const std::vector<PromptPointer>& prompts);
    // By the names that `context` reads them by: of a recorded prompt, or what the text encoders make.
    std::map<std::string, std::vector<float>> rows_of(const Prompt& prompt);
    void forget(const std::vector<PromptPointer>& used);
    Tensor position_of(const Size& latent);

    const Bundle& bundle_;
    const std::function<Engine&(const std::string&)> engine_;
    std::list<Made> made_;                                      // the one used last is the last
    std::list<std::pair<Size, std::vector<float>>> positions_;  // likewise
    std::list<std::pair<std::vector<std::string>, std::shared_ptr<const std::vector<std::vector<float>>>>> batches_;  // likewise, by keys
};

}  // namespace ditedge
