#include "signatures.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <sstream>

#include "json.hpp"
#include "sha256.hpp"
#include "shared_library.hpp"

namespace ditedge {
namespace {

// The bounds of docs/format.md, "Limits": the same as runtime/bundle/signatures.py's.
constexpr std::size_t kMaxSignatureBytes = 4 << 10, kMaxKeyBytes = 16 << 10, kMaxKeys = 100, kKeyBytes = 32;
constexpr char kDigits[] = "0123456789abcdef";
const std::string kDerOfEd25519("\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", 12);  // RFC 8410, before the key

std::string from_base64(const std::string& text) {
    static const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string bytes;
    unsigned bits = 0, have = 0;
    for (const char letter : text) {
        if (letter == '\n' || letter == '\r') continue;
        const std::size_t value = letters.find(letter);
        if (value == std::string::npos) break;  // '=': the end; anything else makes the length wrong
        bits = (bits << 6 | static_cast<unsigned>(value)) & 0xffff;
        if ((have += 6) < 8) continue;
        have -= 8;
        bytes += static_cast<char>(bits >> have & 255);
    }
    return bytes;
}

std::string from_hexadecimal(const std::string& digits) {
    std::string bytes;
    const auto value = [](char digit) { return std::find(kDigits, kDigits + 16, digit) - kDigits; };
    for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
        bytes += static_cast<char>(16 * value(digits[i]) + value(digits[i + 1]));
    return bytes;
}

std::string fingerprint(const std::string& key) { return "sha256:" + sha256_of(kDerOfEd25519 + key); }

// openssl/evp.h and err.h, which are the same from OpenSSL 1.1.1 on.
bool is_valid(const Signature& signature, const std::string& text) {
    constexpr int kEd25519 = 1087;  // EVP_PKEY_ED25519
    const SharedLibrary crypto = open_shared_library("OpenSSL's libcrypto, which checks signatures,", "", "DITEDGE_CRYPTO",
                                                     {"libcrypto.so.3", "libcrypto.so.4", "libcrypto.so.1.1", "libcrypto.so"});
    using Bytes = const unsigned char*;
    using Free = void (*)(void*);
    const auto new_key = crypto.function<void* (*)(int, void*, Bytes, std::size_t)>("EVP_PKEY_new_raw_public_key");
    const auto new_context = crypto.function<void* (*)()>("EVP_MD_CTX_new");
    const auto begin = crypto.function<int (*)(void*, void*, const void*, void*, void*)>("EVP_DigestVerifyInit");
    const auto verify = crypto.function<int (*)(void*, Bytes, std::size_t, Bytes, std::size_t)>("EVP_DigestVerify");
    const auto mark = crypto.function<int (*)()>("ERR_set_mark"), forget = crypto.function<int (*)()>("ERR_pop_to_mark");
    const auto bytes = [](const std::string& given) { return reinterpret_cast<Bytes>(given.data()); };
    mark();  // the application may use OpenSSL, too: its list of errors stays as it is
    const std::unique_ptr<void, Free> pkey(new_key(kEd25519, nullptr, bytes(signature.key), kKeyBytes), crypto.function<Free>("EVP_PKEY_free"));
    const std::unique_ptr<void, Free> context(new_context(), crypto.function<Free>("EVP_MD_CTX_free"));
    const bool valid = pkey != nullptr && context != nullptr && begin(context.get(), nullptr, nullptr, nullptr, pkey.get()) == 1 &&
                       verify(context.get(), bytes(signature.signature), signature.signature.size(), bytes(text), text.size()) == 1;
    forget();
    return valid;
}

}  // namespace

Signature signature_from_json(const std::string& text, const std::string& place) {
    const Json json = parse_json(text, place, DITEDGE_ERROR_BUNDLE);
    const Field root(json, place, DITEDGE_ERROR_BUNDLE);
    root.at("format").one_of({"ditedge-signature"});
    root.at("version").integer(1, 1);
    root.at("algorithm").one_of({"ed25519"});
    const std::string key = root.at("public_key").sha256(), signature = root.at("signature").text();
    if (signature.size() != 128 || signature.find_first_not_of(kDigits) != std::string::npos) root.fail("signature: not 128 hexadecimal digits");
    return {from_hexadecimal(key), from_hexadecimal(signature)};
}

std::string public_key_from_pem(const std::string& text, const std::string& place) {
    const std::string begin = "-----BEGIN PUBLIC KEY-----", end = "-----END PUBLIC KEY-----";
    if (text.find("PRIVATE KEY-----") != std::string::npos)
        fail_request(place + " is a private key, which stays with whoever signs: give its public half (openssl pkey -pubout)");
    const std::size_t from = text.find(begin), to = text.find(end);
    if (from == std::string::npos || to == std::string::npos || to < from)
        fail_request(place + " is not a public key in PEM (-----BEGIN PUBLIC KEY-----)");
    const std::string der = from_base64(text.substr(from + begin.size(), to - from - begin.size()));
    if (der.size() != kDerOfEd25519.size() + kKeyBytes || der.compare(0, kDerOfEd25519.size(), kDerOfEd25519) != 0)
        fail_request(place + " is a key of another kind, and bundles are signed with Ed25519 (ditedge sign --new-key)");
    return der.substr(kDerOfEd25519.size());
}

TrustedKeys read_trusted_keys(const std::vector<std::string>& files) {
    if (files.size() > kMaxKeys) fail_request(std::to_string(files.size()) + " trusted keys are more than 100: leave out those that are not in use");
    TrustedKeys keys;
    for (const std::string& file : files)
        keys.push_back(public_key_from_pem(read_text(AT_FDCWD, file, file, kMaxKeyBytes, DITEDGE_ERROR_REQUEST), file));
    return keys;
}

TrustedKeys trusted_keys_of_environment() {
    const char* named = std::getenv("DITEDGE_TRUSTED_KEYS");
    if (named == nullptr) return {};
    std::vector<std::string> files;
    std::istringstream list(named);
    for (std::string file; std::getline(list, file, ':');)
        if (!file.empty()) files.push_back(file);
    // Whoever set it wants signatures to be asked for.
    if (files.empty()) fail_request("DITEDGE_TRUSTED_KEYS is set and names no file: give paths of public keys, or unset it");
    return read_trusted_keys(files);
}

void check_signed(const Folder& folder, const std::string& name, const std::string& text, const TrustedKeys& trusted) {
    if (trusted.empty()) return;
    const std::string signed_place = (folder.path / name).string(), place = signed_place + ".sig";
    if (!OpenFile::exists(folder, name + ".sig"))
        fail_bundle(signed_place + " is not signed (there is no " + std::filesystem::path(place).filename().string() +
                    "), and only what a trusted key signed is wanted: have it signed (ditedge sign)");
    const Signature found = signature_from_json(
        read_text(folder.descriptor.get(), name + ".sig", place, kMaxSignatureBytes, DITEDGE_ERROR_BUNDLE), place);
    if (std::find(trusted.begin(), trusted.end(), found.key) == trusted.end())
        fail_bundle(signed_place + " is signed by " + fingerprint(found.key) + ", which is not a trusted key");
    if (!is_valid(found, text))
        fail_bundle(signed_place + " is not what " + fingerprint(found.key) + " signed: it, or its signature, was changed");
}

}  // namespace ditedge
