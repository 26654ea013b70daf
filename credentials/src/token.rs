//! The right to join a run as one principal, as a line of text.

use std::{fmt, str::FromStr};

use retouch_proto::ContentHash;

use crate::principal::Principal;

const PREFIX: &str = "retouch";
const SECRET_HEX_LEN: usize = 64;

/// Names the run's authority, so that the joining node knows the real coordinator, and proves to
/// that coordinator that the node may have a certificate.
///
/// Text form: `retouch.<principal>.<hash of the authority's certificate>.<secret>`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Whom it makes of its holder.
    pub principal: Principal,
    /// Hash of the authority's certificate.
    pub authority: ContentHash,
    secret: blake3::Hash,
}

/// Text that is not a token. It does not repeat the text, which may be a secret with a typing error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: {0}; the run folder has tokens in credentials/<role>/token")]
pub struct InvalidToken(&'static str);

impl JoinToken {
    pub(crate) fn new(principal: Principal, authority: ContentHash, secret: blake3::Hash) -> Self {
        Self {
            principal,
            authority,
            secret,
        }
    }

    /// Compares secrets in a time that does not depend on them.
    pub(crate) fn is(&self, other: &Self) -> bool {
        // blake3 compares hashes in constant time.
        self.principal == other.principal
            && self.authority == other.authority
            && self.secret == other.secret
    }

    /// The text to give to a node: whoever has it can join.
    pub fn reveal(&self) -> String {
        let Self {
            principal,
            authority,
            secret,
        } = self;
        format!("{PREFIX}.{principal}.{authority}.{}", secret.to_hex())
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("principal", &self.principal)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [PREFIX, principal, authority, secret] = parts[..] else {
            return Err(InvalidToken(
                "it has not the form retouch.ROLE.AUTHORITY.SECRET",
            ));
        };
        if secret.len() != SECRET_HEX_LEN {
            return Err(InvalidToken("its secret is not 64 hex digits"));
        }
        Ok(Self {
            principal: principal
                .parse()
                .map_err(|_| InvalidToken("it names no role"))?,
            authority: authority
                .parse()
                .map_err(|_| InvalidToken("its authority is not 64 hex digits"))?,
            secret: blake3::Hash::from_hex(secret)
                .map_err(|_| InvalidToken("its secret is not 64 hex digits"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        let secret = blake3::hash(b"secret");
        JoinToken::new(Principal::Control, ContentHash::of(b"ca"), secret)
    }

    #[test]
    fn text_round_trips_and_debug_hides_the_secret() {
        let token = token();
        let text = token.reveal();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!("{text}\n").parse(), Ok(token.clone()));
        let secret = blake3::hash(b"secret").to_hex().to_string();
        assert!(text.contains(&secret) && !format!("{token:?}").contains(&secret));
    }

    #[test]
    fn hostile_text_is_refused_or_understood() {
        let token = token();
        retouch_hostile::bombard(token.reveal().as_bytes(), |bytes| {
            let _ = String::from_utf8_lossy(bytes).parse::<JoinToken>();
        });
    }

    #[test]
    fn other_text_is_refused_and_not_repeated() {
        let good = token().reveal();
        for text in [
            "hunter2".to_owned(),
            good.replace("control", "hunter2"),
            good[..good.len() - 1].to_owned(),
            good.replace("retouch.", ""),
            format!("{good}.hunter2"),
        ] {
            let error = text.parse::<JoinToken>().expect_err("not a token");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
