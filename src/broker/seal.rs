//! Signatures of messages on service channels: they prove that webws published a message, because other Redis clients
//! may be allowed to publish there.
//!
//! A seal is a secret key that never goes to Redis. Redis gets the signature of a message's name under that key, by
//! SipHash 2-4 (<https://www.aumasson.jp/siphash/siphash.pdf>). A signature is valid for its own name only. May not
//! enter: what a message means.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde::{Deserialize, Serialize};

/// A secret key.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seal(u64, u64);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    pub(crate) fn random() -> Self {
        // RandomState's keys are the system's random numbers; its hashes do not reveal the keys.
        let random = RandomState::new();
        Self(random.hash_one(0_u8), random.hash_one(1_u8))
    }

    /// The signature that is published for `name`.
    #[expect(deprecated, reason = "std's other hashers may change; two versions of us must agree")]
    pub(crate) fn sign(self, name: &[u8]) -> String {
        let mut hasher = std::hash::SipHasher::new_with_keys(self.0, self.1);
        hasher.write(name);
        format!("{:016x}", hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_paper_and_differ_by_name_and_key() {
        // Appendix A of the paper.
        let seal = Seal(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let name: Vec<u8> = (0..15).collect();
        assert_eq!(seal.sign(&name), "a129ca6149be45e5");
        assert_ne!(seal.sign(b"a"), seal.sign(b"b"));
        assert_ne!(Seal::random().sign(b"a"), Seal::random().sign(b"a"));
        assert_eq!(format!("{:?}", Seal::random()), "Seal");
    }
}
