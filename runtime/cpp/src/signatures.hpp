// Who made a bundle (runtime/bundle/signatures.py): NAME.sig is an Ed25519 signature over the bytes of NAME, of manifest.json and of
// the build.json of plans. OpenSSL's libcrypto is loaded when a signature is asked for, and only then.
#pragma once

#include <string>
#include <vector>

#include "files.hpp"

namespace ditedge {

using TrustedKeys = std::vector<std::string>;  // public keys, 32 bytes each; none: no signature is asked for

struct Signature {
    std::string key, signature;  // 32 and 64 bytes
};

// Throw Error (bundle), Error (request); `place` is only for the message.
Signature signature_from_json(const std::string& text, const std::string& place);
std::string public_key_from_pem(const std::string& text, const std::string& place);

// The public keys in these PEM files. Throws Error (request).
TrustedKeys read_trusted_keys(const std::vector<std::string>& files);
// Those of $DITEDGE_TRUSTED_KEYS, files with ':' between them; none where it is not set. Throws Error (request).
TrustedKeys trusted_keys_of_environment();

// `text` was read from the file `name`. Throws Error (bundle) unless one of the trusted keys signed it, Error (engine) without
// libcrypto. No trusted keys: nothing is asked for, and nothing read.
void check_signed(const Folder& folder, const std::string& name, const std::string& text, const TrustedKeys& trusted);

}  // namespace ditedge
