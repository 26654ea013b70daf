//! Who may do what in a run: certificates, join tokens, and the checks of both.
//!
//! A run has one [`Authority`]. It issues a certificate for each [`Principal`]: the coordinator, the
//! three worker roles, and people who control the run. Every connection is mutual TLS between two such
//! certificates, and every call is checked for the caller's principal. A node without a certificate
//! gets one with a [`JoinToken`] ([`enroll()`]), which is good for one principal and nothing else.
//!
//! Reading order: [`principal`] names who there is, [`authority`] issues, [`credentials`] is what one
//! process holds, [`access`] turns them into servers, endpoints and checks, [`handshake`] does the same
//! for plain sockets, [`enroll`](enroll()) gets credentials with a token. Secrets have no `Debug` that shows them.

pub mod access;
pub mod authority;
pub mod credentials;
mod enroll;
mod enrollment_grpc;
mod error;
mod files;
pub mod handshake;
mod pinned;
pub mod principal;
mod token;
mod validity;

pub use access::{Access, Strangers, use_ring};
pub use authority::Authority;
pub use credentials::Credentials;
pub use enroll::{EnrollError, enroll};
pub use error::{CredentialsError, explain, is_distrust, is_refusal};
pub use handshake::{Handshake, LinkKeys};
pub use principal::Principal;
pub use token::{InvalidToken, JoinToken};

#[cfg(test)]
mod tests;
