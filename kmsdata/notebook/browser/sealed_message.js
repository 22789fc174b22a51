// Encrypt one message to the kernel with HPKE (RFC 9180, base mode), from the browser's own parts (WebCrypto).
// Suite: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.

const HPKE_KEM = [0x4b, 0x45, 0x4d, 0x00, 0x10]; // "KEM", section 4.1
const HPKE_SUITE = [0x48, 0x50, 0x4b, 0x45, 0x00, 0x10, 0x00, 0x01, 0x00, 0x02]; // "HPKE", section 5.1
const HPKE_CURVE = { name: "ECDH", namedCurve: "P-256" };

const utf8 = (text) => new TextEncoder().encode(text);

function joined(...parts) {
  const bytes = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

async function hmac(key, ...parts) {
  // WebCrypto refuses an empty key; HMAC pads one with zeros, so 32 zeros are the same key.
  const raw = key.length ? key : new Uint8Array(32);
  const imported = await crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, joined(...parts)));
}

// Section 4. Outputs have at most 32 bytes here: one block of HKDF-Expand.
const labeledExtract = (suite, salt, label, material) => hmac(salt, utf8("HPKE-v1"), suite, utf8(label), material);
const labeledExpand = async (suite, key, label, info, size) =>
  (await hmac(key, [0, size], utf8("HPKE-v1"), suite, utf8(label), info, [1])).slice(0, size);

/**
 * Return the encapsulated key (65 bytes) followed by the ciphertext and its tag (16 bytes).
 *
 * publicKey: the recipient's, 65 bytes, uncompressed. info, message: bytes.
 * ephemeral, additionalData: for tests against published vectors; by default a new key pair, and none.
 */
async function sealMessage(publicKey, info, message, { ephemeral, additionalData = new Uint8Array(0) } = {}) {
  const recipient = await crypto.subtle.importKey("raw", publicKey, HPKE_CURVE, false, []);
  const pair = ephemeral ?? (await crypto.subtle.generateKey(HPKE_CURVE, false, ["deriveBits"]));
  const encapsulated = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
  const secret = { name: "ECDH", public: recipient };
  const dh = new Uint8Array(await crypto.subtle.deriveBits(secret, pair.privateKey, 256));

  const nothing = new Uint8Array(0);
  const extracted = await labeledExtract(HPKE_KEM, nothing, "eae_prk", dh);
  const shared = await labeledExpand(HPKE_KEM, extracted, "shared_secret", joined(encapsulated, publicKey), 32);

  const context = joined(
    [0], // mode_base
    await labeledExtract(HPKE_SUITE, nothing, "psk_id_hash", nothing),
    await labeledExtract(HPKE_SUITE, nothing, "info_hash", info),
  );
  const schedule = await labeledExtract(HPKE_SUITE, shared, "secret", nothing);
  const key = await labeledExpand(HPKE_SUITE, schedule, "key", context, 32);
  const nonce = await labeledExpand(HPKE_SUITE, schedule, "base_nonce", context, 12);
  const aes = await crypto.subtle.importKey("raw", key, "AES-GCM", false, ["encrypt"]);
  const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv: nonce, additionalData }, aes, message);
  return joined(encapsulated, new Uint8Array(sealed));
}
