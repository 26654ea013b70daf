//! What can be wrong with credentials, and what TLS says of them.

use std::{error::Error, io, path::PathBuf};

use retouch_proto::files::is_lasting;
use rustls::AlertDescription;
use tonic::{Code, Status};

use crate::validity::{expired, not_valid_yet};

/// How rustls begins to tell of an alert.
const ALERT: &str = "received fatal alert";

/// Credentials that can't be read, made or used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file or folder.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A secret that is none.
    #[error("{} can be read by everybody (mode {mode:03o}): its mode must be 600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file that holds something else.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate that is not valid now.
    #[error(
        "the certificate of {holder} in {} {problem}; the next start of the run's coordinator renews it in the run \
         folder, elsewhere take a copy from there or join with a token", folder.display()
    )]
    Dates {
        /// Whom it speaks for.
        holder: String,
        /// Where it is.
        folder: PathBuf,
        /// Since or from when.
        problem: String,
    },
    /// A certificate that can't be made.
    #[error("cannot issue a certificate for {principal}: {source}")]
    Issue {
        /// For whom.
        principal: String,
        /// Why.
        source: rcgen::Error,
    },
    /// Certificate and key that can't be used for TLS.
    #[error("the certificate, key or authority cannot be used: {0}")]
    Unusable(String),
    /// An address that is none.
    #[error("address {address:?} is not host:port: {reason}")]
    Address {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
}

impl CredentialsError {
    /// Whether trying again would fail the same way.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_lasting(source),
            Self::Exposed { .. }
            | Self::File { .. }
            | Self::Dates { .. }
            | Self::Issue { .. }
            | Self::Unusable(_)
            | Self::Address { .. } => true,
        }
    }

    pub(crate) fn io(path: &std::path::Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// The whole story of a failed call: tonic's own message is only the outermost of several errors.
pub fn explain(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    for cause in causes(status) {
        let cause = dated(cause).unwrap_or_else(|| cause.to_string());
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Whether the other side has said that it does not want such a call, now or later.
pub fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::Unimplemented
            | Code::OutOfRange
    )
}

/// Whether one side does not believe the other's certificate.
pub fn is_distrust(status: &Status) -> bool {
    causes(status).any(is_about_certificates)
}

/// What is behind an error, outermost first.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

/// What is said about a certificate with wrong dates: which dates, or that it is a matter of clocks.
fn dated(cause: &(dyn Error + 'static)) -> Option<String> {
    use rustls::CertificateError::{ExpiredContext, NotValidYetContext};
    let peers = |problem| Some(format!("the other side's certificate {problem}"));
    let by_the_others_clock =
        "by the other side's clock, this side's certificate has expired or is not valid yet";
    let Some(error) = tls_error(cause) else {
        // An alert that comes late is only left as text.
        let text = cause.to_string();
        let is_about_dates = text.starts_with(ALERT) && text.ends_with("CertificateExpired");
        return is_about_dates.then(|| by_the_others_clock.to_owned());
    };
    match error {
        rustls::Error::InvalidCertificate(ExpiredContext { time, not_after }) => {
            peers(expired(not_after.as_secs(), time.as_secs()))
        }
        rustls::Error::InvalidCertificate(NotValidYetContext { time, not_before }) => {
            peers(not_valid_yet(not_before.as_secs(), time.as_secs()))
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            Some(by_the_others_clock.to_owned())
        }
        _ => None,
    }
}

fn tls_error<'a>(cause: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = cause
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    let direct = cause.downcast_ref::<rustls::Error>();
    direct.or_else(|| wrapped?.downcast_ref::<rustls::Error>())
}

/// TLS errors that mean something else than a broken connection.
fn is_about_certificates(cause: &(dyn Error + 'static)) -> bool {
    let error = tls_error(cause);
    // An alert that comes late is only left as text.
    let text = || cause.to_string().starts_with(ALERT);
    error.map_or_else(text, |error| {
        matches!(
            error,
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::AlertReceived(_)
                | rustls::Error::NoCertificatesPresented
        )
    })
}
