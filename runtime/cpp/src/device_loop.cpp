// The sampling loop on a GPU (runtime/loop/device_loop.py): everything is uploaded ahead, every step enqueued, captured once
// and replayed (device_run.cpp, device_steps.cpp).
#include <cstring>
#include <list>

#include "device_run.hpp"
#include "error.hpp"

namespace ditedge {
namespace {

using HostLoopOpener = std::function<std::unique_ptr<Loop>()>;

constexpr std::size_t kDecoding = kEvents;  // the mark of a decoder's work, after those of segments
constexpr std::size_t kRunsKept = 2;        // shapes whose buffers and graphs are kept: whole batches, the last

class DeviceLoop final : public Loop {
public:
    // host: opens the loop for what only ONNX Runtime's own calls do; null where there are plans alone.
    DeviceLoop(std::shared_ptr<const Bundle> bundle, std::unique_ptr<PlanLibrary> library, const EngineOptions& options, HostLoopOpener host)
        : Loop(std::move(bundle)), open_host_(std::move(host)), device_(*bundle_, std::move(library), options, warnings_) {
        for (auto& [graph, most] : at_once_) {
            most = device_.at_most(graph.c_str(), "latent", most);
            const auto count = static_cast<std::size_t>(most);
            Pictures& made = pictures_[graph];
            made.image_bytes = bundle_->manifest.picture_size(graph, bundle_->manifest.latent()).bytes();
            made.latents = device_.memory.device(count * latent_bytes());
            made.latents_host = device_.memory.pinned(count * latent_bytes());
            made.images = device_.memory.device(count * made.image_bytes);
            made.images_host = device_.memory.pinned(count * made.image_bytes);
            made.context = device_.context(graph.c_str(), {});
        }
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
        device_.gpu.use();
        const auto same = [shape = shape_of(run.tables)](const auto& kept) { return kept->shape == shape; };
        const auto found = std::find_if(runs_.begin(), runs_.end(), same);
        bool fresh = false;
        if (found != runs_.end()) {
            runs_.splice(runs_.begin(), runs_, found);
        } else {
            fresh = true;
            if (runs_.size() == kRunsKept) runs_.pop_back();
            runs_.push_front(std::make_unique<DeviceRun>(device_, run));
        }
        first_state(run.program, run.noise, nullptr, run.tables.batch, bundle_->latent_count(), runs_.front()->state());
        runs_.front()->sample(run);
        if (fresh) device_.keep();
        latents_of_state(run, bundle_->latent_count(), runs_.front()->state(), latents);
    }

    // Images at their own steps: by the host, which copies what every step reads and writes.
    void advance(const std::vector<ImageRun*>& runs) override { open_host_ ? host().advance(runs) : Loop::advance(runs); }

protected:
    void interrupt(bool stop) override {
        Loop* const host = host_now_.load();
        if (host != nullptr) stop ? host->cancel() : host->begin();
    }

    // Also from a callback: the work takes its place in the stream behind the steps that are enqueued.
    void decode_some(const std::string& graph, const float* latents, std::int64_t count, const Size& latent, std::uint8_t* images) override {
        device_.gpu.use();
        Pictures& made = pictures_.at(graph);
        const std::size_t bytes = static_cast<std::size_t>(count) * latent_bytes(), pixels = static_cast<std::size_t>(count) * made.image_bytes;
        std::memcpy(made.latents_host, latents, bytes);
        device_.stream.copy(made.latents, made.latents_host, bytes);
        made.context->set_shape("latent", {count, bundle_->manifest.model.in_channels, latent.height, latent.width});
        made.context->set_address("latent", made.latents);
        made.context->set_address("image", made.images);
        made.context->enqueue(device_.stream.get());
        device_.stream.copy(made.images_host, made.images, pixels);
        device_.stream.mark(kDecoding);
        device_.stream.wait(kDecoding);
        std::memcpy(images, made.images_host, pixels);
    }

private:
    // Buffers and the context of a graph that makes pictures.
    struct Pictures {
        std::unique_ptr<Context> context;
        char *latents = nullptr, *images = nullptr, *latents_host = nullptr, *images_host = nullptr;
        std::size_t image_bytes = 0;  // of one
    };

    std::size_t latent_bytes() const { return sizeof(float) * bundle_->latent_count(); }

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
    std::map<std::string, Pictures> pictures_;    // of the decoder and of the preview
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
