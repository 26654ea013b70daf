//! From when until when a certificate is valid.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

/// The last second that has a date of four digits.
const DATE_S_MAX: u64 = 253_402_300_799;

/// Both in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    not_before: u64,
    not_after: u64,
}

impl Validity {
    /// What a certificate says; none if it is not one.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        // Dates are the first thing that is verified, and what is said about wrong ones is all that webpki tells of them.
        let problem_at = |seconds| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let usage = KeyUsage::client_auth();
            let verified = certificate.verify_for_usage(&[], &[], &[], time, usage, None, None);
            verified.err()
        };
        let not_before = match problem_at(0)? {
            webpki::Error::CertNotValidYet { not_before, .. } => not_before.as_secs(),
            _ => 0,
        };
        let webpki::Error::CertExpired { not_after, .. } = problem_at(u64::MAX)? else {
            return None;
        };
        Some(Self {
            not_before,
            not_after: not_after.as_secs(),
        })
    }

    /// Whether it is valid now and for so long.
    pub(crate) fn lasts(self, now: SystemTime, for_s: Duration) -> bool {
        let now = seconds(now);
        self.not_before <= now && now + for_s.as_secs() <= self.not_after
    }

    /// What is wrong with it now, if something is.
    pub(crate) fn problem(self, now: SystemTime) -> Option<String> {
        let now = seconds(now);
        if now < self.not_before {
            Some(not_valid_yet(self.not_before, now))
        } else if now > self.not_after {
            Some(expired(self.not_after, now))
        } else {
            None
        }
    }
}

/// As the end of a sentence about a certificate.
pub(crate) fn expired(not_after: u64, now: u64) -> String {
    let (not_after, now) = (date(not_after), date(now));
    format!("expired on {not_after}; this machine's clock says {now}")
}

/// As the end of a sentence about a certificate.
pub(crate) fn not_valid_yet(not_before: u64, now: u64) -> String {
    let (not_before, now) = (date(not_before), date(now));
    format!("is not valid before {not_before}; this machine's clock says {now}")
}

fn date(seconds: u64) -> String {
    let since = Duration::from_secs(seconds.min(DATE_S_MAX));
    (rcgen::date_time_ymd(1970, 1, 1) + since)
        .date()
        .to_string()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_dates_are_told_with_the_clocks_own() {
        let validity = Validity {
            not_before: 946_684_800,
            not_after: 1_000_000_000,
        };
        let at = |seconds| validity.problem(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(950_000_000), None);
        assert_eq!(
            at(0).as_deref(),
            Some("is not valid before 2000-01-01; this machine's clock says 1970-01-01")
        );
        assert_eq!(
            at(1_100_000_000).as_deref(),
            Some("expired on 2001-09-09; this machine's clock says 2004-11-09")
        );
    }
}
