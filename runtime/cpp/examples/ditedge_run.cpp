// ditedge-run: classes or prompts, and seeds, in, one PNG out (a column of pictures when there are several).
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <sstream>

#include "arguments.hpp"
#include "ditedge.hpp"

namespace {

const char kUsage[] =
    "usage: ditedge-run --bundle FOLDER --class LABEL[;LABEL...] [--seed 0] [--program NAME | --program-file FILE]\n"
    "                   or, of a model that takes prompts, --prompt-ids ID,ID,...[;...] --prompt-file FILE[;FILE...]\n"
    "                   [--negative-ids ID,ID,... | --negative-file FILE] [--size WIDTHxHEIGHT]\n"
    "                   [--guidance G] [--batch 8] [-o out.png] [--latents FILE.f32]\n"
    "                   [--engine onnxruntime|tensorrt|tensorrt-rtx] [--provider cpu] [--device 0]\n"
    "                   [--library PATH OF THE ENGINE'S LIBRARY] [--threads 0] [--spin] [--no-cuda-graph]\n"
    "                   [--check-finite] [--force-program] [--trusted-key FILE[;FILE...]]\n"
    "A trusted key is a public one, in PEM: only what it signed is run (ditedge sign; also $DITEDGE_TRUSTED_KEYS).\n"
    "Prompts are token ids, or files that `ditedge encode` recorded; one to guide away from is for all images.\n"
    "Image i has seed + i. Images that overflow are black, and the exit code is 1 (--check-finite: at which step).\n"
    "examples: ditedge-run --bundle build/demo/fashion --class 'Bag;Ankle boot' --seed 7 -o bag.png\n"
    "          ditedge-run --bundle build/demo/fashion --class Bag --engine tensorrt      (plans: ditedge build)\n"
    "          ditedge-run --bundle pixart --prompt-file fox.safetensors --size 768x512 -o fox.png\n";

void big_endian(std::string& bytes, std::uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 255);
}

void chunk(std::string& png, const std::string& name, const std::string& data) {
    big_endian(png, static_cast<std::uint32_t>(data.size()));
    std::uint32_t crc = 0xffffffffu;
    for (const char byte : name + data) {
        crc ^= static_cast<unsigned char>(byte);
        for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1u)));
    }
    png += name + data;
    big_endian(png, ~crc);
}

// pixels [height, width, 1 or 3] -> PNG with stored (uncompressed) deflate blocks (RFC 1950, 1951, 2083).
std::string png_of(const std::vector<std::uint8_t>& pixels, std::uint32_t height, std::uint32_t width, std::uint32_t channels) {
    std::string header, raw, data("\x78\x01", 2), png("\x89PNG\r\n\x1a\n", 8);
    big_endian(header, width);
    big_endian(header, height);
    header += {8, static_cast<char>(channels == 3 ? 2 : 0), 0, 0, 0};
    for (std::uint32_t y = 0; y < height; ++y) {
        raw += '\0';  // no filter
        raw.append(reinterpret_cast<const char*>(pixels.data()) + std::size_t{y} * width * channels, std::size_t{width} * channels);
    }
    std::uint32_t a = 1, b = 0;  // Adler-32
    for (const char byte : raw) a = (a + static_cast<unsigned char>(byte)) % 65521, b = (b + a) % 65521;
    for (std::size_t start = 0; start < raw.size(); start += 65535) {
        const std::size_t length = std::min<std::size_t>(65535, raw.size() - start);
        data += static_cast<char>(start + length == raw.size());
        for (const std::size_t word : {length, ~length}) data += {static_cast<char>(word & 255), static_cast<char>(word >> 8 & 255)};
        data.append(raw, start, length);
    }
    big_endian(data, b << 16 | a);
    if (data.size() > INT32_MAX) throw std::runtime_error("pictures of more than 2 GB are no PNG: ask for fewer classes");
    chunk(png, "IHDR", header);
    chunk(png, "IDAT", data);
    chunk(png, "IEND", "");
    return png;
}

[[noreturn]] void cannot_write(const std::string& path) {
    throw std::runtime_error("cannot write " + path + ": " + std::strerror(errno));
}

bool write_all(std::FILE* file, const void* data, std::size_t bytes) {
    const bool written = std::fwrite(data, 1, bytes, file) == bytes;
    return std::fclose(file) == 0 && written;
}

// Whole or not at all: into a new file beside it, which takes its place. A link keeps pointing, a device or pipe is written to.
void write_file(const std::string& given, const void* data, std::size_t bytes) {
    std::error_code code;
    const std::filesystem::path target = std::filesystem::weakly_canonical(given, code);
    const std::string path = code ? given : target.string();
    if (std::filesystem::exists(path, code) && !std::filesystem::is_regular_file(path, code)) {
        std::FILE* file = std::fopen(path.c_str(), "wb");
        if (file == nullptr || !write_all(file, data, bytes)) cannot_write(given);
        return;
    }
    std::string temporary = path + ".XXXXXX";
    const int descriptor = mkstemp(temporary.data());  // a name that nothing has, never a link
    if (descriptor < 0) cannot_write(given);
    const mode_t mask = umask(0);
    umask(mask);
    fchmod(descriptor, 0666 & ~mask);
    if (!write_all(fdopen(descriptor, "wb"), data, bytes) || std::rename(temporary.c_str(), path.c_str()) != 0) {
        std::remove(temporary.c_str());
        cannot_write(given);
    }
}

// Said before the sampling, not after minutes of it.
void check_can_write(const std::string& given) {
    namespace fs = std::filesystem;
    std::error_code code;
    const fs::path whole = fs::absolute(given, code), target = fs::weakly_canonical(whole, code), path = code ? whole : target;
    const bool written_to = fs::exists(path, code) && !fs::is_regular_file(path, code);
    if (fs::is_directory(path, code)) errno = EISDIR, cannot_write(given);
    if (access((written_to ? path : path.parent_path() / ".").c_str(), W_OK) != 0) cannot_write(given);
}

void show(const ditedge_progress* progress, void*) {
    std::fprintf(stderr, "\rstep %lld/%lld", static_cast<long long>(progress->done), static_cast<long long>(progress->total));
    if (progress->done == progress->total) std::fputc('\n', stderr);
}

// Calls `generate`, and gives back what it complains of where it wrote the good images all the same.
template <class Generate>
std::string complaint(const Generate& generate) {
    try {
        generate();
        return "";
    } catch (const ditedge::api::Failure& failure) {
        if (failure.status() != DITEDGE_ERROR_NOT_FINITE) throw;
        return failure.what();
    }
}

// "a;b" -> {"a", "b"}
std::vector<std::string> listed(const std::string& text) {
    std::vector<std::string> names;
    std::istringstream list(text);
    for (std::string name; std::getline(list, name, ';');) names.push_back(name);
    return names;
}

ditedge::api::Bundle open_bundle(const Arguments& arguments) {
    const std::vector<std::string> keys = listed(arguments.text("--trusted-key"));
    if (keys.empty()) return ditedge::api::Bundle(arguments.text("--bundle"));
    return ditedge::api::Bundle::open_trusted(arguments.text("--bundle"), keys);
}

// "4,5,6" -> {4, 5, 6}
std::vector<std::int64_t> token_ids(const char* option, const std::string& text) {
    std::vector<std::int64_t> ids;
    std::istringstream list(text);
    for (std::string id; std::getline(list, id, ',');) {
        if (id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != std::string::npos)
            throw std::invalid_argument(std::string(option) + " " + text + " is not token ids with commas between");
        ids.push_back(std::stoll(id));
    }
    return ids;
}

// What was given as ids, then what was given as files.
std::vector<ditedge::api::Prompt> prompts(const ditedge::api::Bundle& bundle, const Arguments& arguments, const char* ids, const char* files) {
    std::vector<ditedge::api::Prompt> found;
    for (const std::string& text : listed(arguments.text(ids))) found.emplace_back(bundle, token_ids(ids, text));
    for (const std::string& file : listed(arguments.text(files))) found.emplace_back(bundle, file);
    return found;
}

// "768x512" -> width and height
void read_size(const std::string& text, ditedge_params& params) {
    int width = 0, height = 0, used = 0;
    if (text.empty()) return;
    if (std::sscanf(text.c_str(), "%6dx%6d%n", &width, &height, &used) != 2 || static_cast<std::size_t>(used) != text.size() || width < 1 || height < 1)
        throw std::invalid_argument("--size " + text + " is not WIDTHxHEIGHT");
    params.width = width, params.height = height;
}

// [count] handles of one prompt an image, or of one for all.
std::vector<const ditedge_prompt*> handles(const std::vector<ditedge::api::Prompt>& of, std::size_t count) {
    std::vector<const ditedge_prompt*> all;
    for (std::size_t i = 0; i < count; ++i) all.push_back(of[i % of.size()].get());
    return all;
}

int run(const Arguments& arguments) {
    const bool of_prompts = !arguments.text("--prompt-ids").empty() || !arguments.text("--prompt-file").empty();
    if (arguments.text("--bundle").empty() || (arguments.text("--class").empty() && !of_prompts)) throw std::invalid_argument("--bundle and --class are needed");
    if (!arguments.text("--class").empty() && of_prompts) throw std::invalid_argument("--class is for models of classes, and --prompt-ids and --prompt-file are for others");
    const std::string target = arguments.text(arguments.text("--latents").empty() ? "-o" : "--latents");
    check_can_write(target);
    const ditedge::api::Bundle bundle = open_bundle(arguments);
    std::vector<std::int64_t> labels;
    std::vector<std::uint64_t> seeds;
    const std::uint64_t seed = arguments.whole("--seed", UINT64_MAX);
    const std::vector<ditedge::api::Prompt> of = prompts(bundle, arguments, "--prompt-ids", "--prompt-file");
    const std::vector<ditedge::api::Prompt> away = prompts(bundle, arguments, "--negative-ids", "--negative-file");
    if (away.size() > 1) throw std::invalid_argument("--negative-ids or --negative-file: give one, for all images");
    if (!arguments.text("--class").empty() && bundle.info().num_classes == 0)
        throw std::runtime_error(arguments.text("--bundle") + " takes prompts, and no classes: give prompts");
    for (const std::string& name : listed(arguments.text("--class"))) labels.push_back(bundle.label(name));
    for (std::size_t i = 0; i < std::max(labels.size(), of.size()); ++i) {
        if (seed > UINT64_MAX - seeds.size()) throw std::invalid_argument("--seed is too large: image i has seed + i");
        seeds.push_back(seed + seeds.size());
    }
    ditedge_session_options options = ditedge::api::default_options();
    options.engine = arguments.text_or_null("--engine");
    options.provider = arguments.text_or_null("--provider");
    options.library = arguments.text_or_null("--library");
    options.threads = static_cast<std::int32_t>(arguments.whole("--threads", INT32_MAX));
    options.spin = arguments.on("--spin");
    options.no_cuda_graph = arguments.on("--no-cuda-graph");
    options.device = static_cast<std::int32_t>(arguments.whole("--device", INT32_MAX));
    ditedge::api::Session session(bundle, options);
    ditedge_params params = ditedge::api::default_params();
    params.count = static_cast<std::int64_t>(seeds.size());
    params.labels = labels.empty() ? nullptr : labels.data(), params.seeds = seeds.data();
    const std::vector<const ditedge_prompt*> shown = of.empty() ? std::vector<const ditedge_prompt*>{} : handles(of, seeds.size());
    const std::vector<const ditedge_prompt*> shunned = away.empty() ? std::vector<const ditedge_prompt*>{} : handles(away, seeds.size());
    params.prompts = of.empty() ? nullptr : shown.data(), params.negatives = away.empty() ? nullptr : shunned.data();
    read_size(arguments.text("--size"), params);
    params.program = arguments.text_or_null("--program");
    params.program_file = arguments.text_or_null("--program-file");
    params.batch = static_cast<std::int64_t>(arguments.whole("--batch", 4096));
    if (!arguments.text("--guidance").empty()) params.guidance = arguments.number("--guidance");
    params.check_finite = arguments.on("--check-finite"), params.other_process = arguments.on("--force-program");
    params.on_progress = show;
    std::string bad;
    if (!arguments.text("--latents").empty()) {
        std::vector<float> latents;
        bad = complaint([&] { session.latents(params, latents); });
        write_file(target, latents.data(), latents.size() * sizeof(float));
    } else {
        const ditedge_info info = bundle.info();
        std::vector<std::uint8_t> images;
        bad = complaint([&] { session.images(params, images); });
        const std::int64_t width = params.width != 0 ? params.width : info.image_width, height = params.height != 0 ? params.height : info.image_height;
        const std::string png = png_of(images, static_cast<std::uint32_t>(height * params.count), static_cast<std::uint32_t>(width),
                                       static_cast<std::uint32_t>(info.image_channels));
        write_file(target, png.data(), png.size());
        std::cout << target << '\n';
    }
    for (const std::string& warning : session.warnings()) std::cerr << "warning: " << printable(warning) << '\n';
    if (!bad.empty()) std::cerr << "error: " << bad << '\n';
    return bad.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
    if (Arguments::ask_for_help(argc, argv)) return std::cout << kUsage, 0;
    try {
        return run(Arguments(argc, argv, {{"--bundle", ""}, {"--class", ""}, {"--prompt-ids", ""}, {"--prompt-file", ""},
                                   {"--negative-ids", ""}, {"--negative-file", ""}, {"--size", ""}, {"--seed", "0"}, {"--program", ""}, {"--program-file", ""}, {"--guidance", ""},
                                   {"--batch", "8"}, {"--trusted-key", ""}, {"-o", "out.png"}, {"--latents", ""}, {"--engine", ""},
                                   {"--provider", "cpu"}, {"--library", ""}, {"--threads", "0"}, {"--device", "0"},
                                   {"--spin", "off"}, {"--no-cuda-graph", "off"}, {"--check-finite", "off"}, {"--force-program", "off"}}));
    } catch (const std::invalid_argument& error) {
        std::cerr << "error: " << printable(error.what()) << '\n' << kUsage;
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "error: " << printable(error.what()) << '\n';
        return 2;
    }
}
