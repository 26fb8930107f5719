// ditedge-words: words in, one picture (PPM) out. They become tokens by sentencepiece, as T5's models want them, where this was
// compiled with it (libsentencepiece-dev); token ids are taken without.
#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>

#include "arguments.hpp"
#include "ditedge.hpp"
#ifdef DITEDGE_SENTENCEPIECE
#include <sentencepiece_processor.h>
#endif

namespace {

const char kUsage[] =
    "usage: ditedge-words --bundle FOLDER --words TEXT --spiece spiece.model | --ids ID,ID,... [--seed 0] [-o out.ppm]\n"
    "spiece.model is the file of the text encoder's tokenizer folder, which a bundle does not have.\n"
    "example: ditedge-words --bundle pixart --words 'a red fox' --spiece PixArt-Sigma/tokenizer/spiece.model -o fox.ppm\n";

// As PixArt's pipeline and `ditedge run` do: without outer spaces, A to Z as a to z, the end's token last.
std::vector<std::int64_t> ids_of_words(std::string words, const std::string& model) {
#ifdef DITEDGE_SENTENCEPIECE
    for (char& letter : words)
        if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
    const auto first = words.find_first_not_of(" \t\r\n"), last = words.find_last_not_of(" \t\r\n");
    words = first == std::string::npos ? "" : words.substr(first, last - first + 1);
    sentencepiece::SentencePieceProcessor processor;
    const auto loaded = processor.Load(model);
    if (!loaded.ok()) throw std::runtime_error("cannot read " + model + ": " + loaded.ToString());
    std::vector<int> pieces;
    const auto encoded = processor.Encode(words, &pieces);
    if (!encoded.ok()) throw std::runtime_error(model + ": " + encoded.ToString());
    std::vector<std::int64_t> ids(pieces.begin(), pieces.end());
    if (processor.eos_id() < 0) throw std::runtime_error(model + " has no token of the end, which T5 wants");
    ids.push_back(processor.eos_id());
    return ids;
#else
    throw std::runtime_error("this was compiled without sentencepiece, which reads " + model + " and '" + words + "': give --ids");
#endif
}

std::vector<std::int64_t> ids_of_text(const std::string& text) {
    std::vector<std::int64_t> ids;
    std::istringstream list(text);
    for (std::string id; std::getline(list, id, ',');) {
        if (id.empty() || id.size() > 9 || id.find_first_not_of("0123456789") != std::string::npos)
            throw std::invalid_argument("--ids " + text + " is not token ids with commas between");
        ids.push_back(std::stoll(id));
    }
    return ids;
}

void run(const Arguments& arguments) {
    const bool words = !arguments.text("--spiece").empty();
    if (arguments.text("--bundle").empty() || words == !arguments.text("--ids").empty())
        throw std::invalid_argument("--bundle, and either --ids or --spiece with --words, are needed");
    const ditedge::api::Bundle bundle(arguments.text("--bundle"));
    std::vector<std::int64_t> ids = words ? ids_of_words(arguments.text("--words"), arguments.text("--spiece")) : ids_of_text(arguments.text("--ids"));
    const ditedge_info info = bundle.info();
    const auto most = static_cast<std::size_t>(info.prompt_tokens);
    if (words && most > 0 && ids.size() > most) {  // cut, and the end's token last
        std::cerr << "warning: the prompt has " << ids.size() << " tokens and the model reads " << most << ": its end is cut\n";
        ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(most) - 1, ids.end() - 1);
    }
    const ditedge::api::Prompt prompt(bundle, ids);
    const ditedge_prompt* const prompts[] = {prompt.get()};
    const std::uint64_t seeds[] = {arguments.whole("--seed", UINT64_MAX)};
    ditedge_params params = ditedge::api::default_params();
    params.count = 1, params.prompts = prompts, params.seeds = seeds;
    ditedge::api::Session session(bundle);
    const std::vector<std::uint8_t> pixels = session.images(params);
    std::FILE* file = std::fopen(arguments.text("-o").c_str(), "wb");
    if (file == nullptr) throw std::runtime_error("cannot write " + arguments.text("-o"));
    std::fprintf(file, "P%d\n%d %d\n255\n", info.image_channels == 1 ? 5 : 6, static_cast<int>(info.image_width), static_cast<int>(info.image_height));
    const bool written = std::fwrite(pixels.data(), 1, pixels.size(), file) == pixels.size();
    if (std::fclose(file) != 0 || !written) throw std::runtime_error("cannot write " + arguments.text("-o"));
    for (std::size_t i = 0; i < ids.size(); ++i) std::cout << (i == 0 ? "" : ",") << ids[i];
    std::cout << '\n';
}

}  // namespace

int main(int argc, char** argv) {
    if (Arguments::ask_for_help(argc, argv)) return std::cout << kUsage, 0;
    try {
        run(Arguments(argc, argv, {{"--bundle", ""}, {"--words", ""}, {"--spiece", ""}, {"--ids", ""}, {"--seed", "0"}, {"-o", "out.ppm"}}));
        return 0;
    } catch (const std::invalid_argument& error) {
        std::cerr << "error: " << printable(error.what()) << '\n' << kUsage;
    } catch (const std::exception& error) {
        std::cerr << "error: " << printable(error.what()) << '\n';
    }
    return 2;
}
