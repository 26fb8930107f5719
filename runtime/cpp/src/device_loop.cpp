// The sampling loop on a GPU (runtime/loop/device_loop.py): everything is uploaded ahead, every step enqueued, captured once
// and replayed (device_run.cpp, device_steps.cpp).
#include <list>

#include "device_engine.hpp"
#include "device_run.hpp"
#include "error.hpp"

namespace ditedge {
namespace {

using HostLoopOpener = std::function<std::unique_ptr<Loop>()>;

constexpr std::size_t kRunsKept = 2;        // shapes whose buffers and graphs are kept: whole batches, the last

class DeviceLoop final : public Loop {
public:
    // host: opens the loop for what only ONNX Runtime's own calls do; null where there are plans alone.
    DeviceLoop(std::shared_ptr<const Bundle> bundle, std::unique_ptr<PlanLibrary> library, const EngineOptions& options, HostLoopOpener host)
        : Loop(std::move(bundle)), open_host_(std::move(host)), device_(*bundle_, std::move(library), options, warnings_),
          encoders_(*bundle_, for_encoders(options), cancelled), text_(*bundle_, [this](const std::string& graph) -> Engine& { return engine(graph); }) {
        for (auto& [graph, most] : at_once_) most = device_.at_most(graph.c_str(), "latent", most);
    }
    ~DeviceLoop() override {
        try {
            device_.gpu.use();
            device_.keep();
        } catch (const std::exception&) {  // nothing can be freed on a device that is gone
        }
    }

    void sample(const Run& run, float* latents) override {
        for (const std::string& graph : run.program.graph) {
            if (graph == "step") continue;
            if (open_host_) return host().sample(run, latents);
            fail_request("program '" + run.program.name + "' runs graph '" + graph + "', and plans have 'step' alone");
        }
        const std::int64_t most = device_.record.max_batch;
        if (run.tables.batch > most)
            fail_request("a batch of " + std::to_string(run.tables.batch) + " is more than the plans were built for, " +
                         std::to_string(most) + ": use a smaller batch, or build with --max-batch");
        if (bundle_->manifest.text) device_.record.check_size(run.latent, *bundle_->manifest.text);
        device_.gpu.use();
        const OfPrompts told = text_.of(run.tables.prompts, run.latent);
        const auto same = [shape = shape_of(run.tables, run.latent)](const auto& kept) { return kept->shape == shape; };
        const auto found = std::find_if(runs_.begin(), runs_.end(), same);
        bool fresh = false;
        if (found != runs_.end()) {
            runs_.splice(runs_.begin(), runs_, found);
        } else {
            fresh = true;
            if (runs_.size() == kRunsKept) runs_.pop_back();
            runs_.push_front(std::make_unique<DeviceRun>(device_, run, told));
        }
        const std::size_t latent = bundle_->latent_count(run.latent);
        first_state(run.program, run.noise, nullptr, run.tables.batch, latent, runs_.front()->state());
        runs_.front()->sample(run, told);
        if (fresh) device_.keep();
        latents_of_state(run, latent, runs_.front()->state(), latents);
    }

    // Images at their own steps: by the host, which copies what every step reads and writes.
    void advance(const std::vector<ImageRun*>& runs) override { open_host_ ? host().advance(runs) : Loop::advance(runs); }

protected:
    void interrupt(bool stop) override {
        encoders_.interrupt(stop);
        Loop* const host = host_now_.load();
        if (host != nullptr) stop ? host->cancel() : host->begin();
    }

    void decode_some(const std::string& graph, const float* latents, std::int64_t count, const Size& latent, std::uint8_t* images) override {
        device_.gpu.use();
        const ImageSize size = bundle_->manifest.picture_size(graph, latent);
        engine(graph).run({view("latent", latents, {count, bundle_->manifest.model.in_channels, latent.height, latent.width})},
                          {view("image", images, {count, size.height, size.width, size.channels})});
    }

private:
    // A text encoder has no plan: ONNX Runtime has it, on the CPU where plans have the device.
    static EngineOptions for_encoders(const EngineOptions& options) {
        if (options.engine == "onnxruntime") return options;
        EngineOptions own;
        own.threads = options.threads;
        return own;
    }

    Engine& engine(const std::string& graph) {
        if (TextEncoders::has(graph)) return encoders_.engine(graph);
        std::unique_ptr<DeviceEngine>& found = engines_[graph];
        if (found == nullptr) found = std::make_unique<DeviceEngine>(device_, graph);
        return *found;
    }

    // Loaded at first use. A cancel of another thread sees it, or is seen here.
    Loop& host() {
        if (host_ == nullptr) {
            host_ = open_host_();
            host_now_.store(host_.get());
            if (cancelled.load()) host_->cancel();
        }
        return *host_;
    }

    const HostLoopOpener open_host_;
    std::unique_ptr<Loop> host_;
    std::atomic<Loop*> host_now_{nullptr};
    Device device_;
    std::list<std::unique_ptr<DeviceRun>> runs_;  // the most recently used first
    std::map<std::string, std::unique_ptr<DeviceEngine>> engines_;  // of the other graphs
    TextEncoders encoders_;
    TextGraphs text_;
};

}  // namespace

std::unique_ptr<Loop> open_device_loop(std::shared_ptr<const Bundle> bundle, const EngineOptions& options) {
#ifdef DITEDGE_TENSORRT
    if (options.engine != "onnxruntime") return std::make_unique<DeviceLoop>(std::move(bundle), open_tensorrt(options), options, nullptr);
#endif
    const HostLoopOpener host = [bundle, options] { return open_host_loop(bundle, options); };
    return std::make_unique<DeviceLoop>(bundle, open_ort_cuda(options), options, host);
}

}  // namespace ditedge
