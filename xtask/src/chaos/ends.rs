//! How `launch` may end.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use nix::sys::signal::Signal as Unix;

use super::plan::Signal;

/// Whether these signals explain an end: 75 asks to be started again, 130 is what shells say of Ctrl-C.
pub(crate) fn is_expected(status: ExitStatus, struck: &[Signal], is_starting: bool) -> bool {
    let explains = |signal: &Signal| match signal {
        Signal::Kill => status.signal() == Some(Unix::SIGKILL as i32),
        Signal::Term | Signal::Hup => status.code() == Some(75),
        Signal::Int => status.code() == Some(130),
    };
    let is_signal = |signal: &Signal| status.signal() == Some(Unix::from(*signal) as i32);
    // The second ends a process at once.
    let is_second = struck.len() > 1 && status.code() == Some(130);
    is_second || struck.iter().any(explains) || (is_starting && struck.iter().any(is_signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_explained_by_what_was_sent() {
        let exit = |code: i32| ExitStatus::from_raw(code << 8);
        let signal = ExitStatus::from_raw;
        assert!(is_expected(signal(9), &[Signal::Kill], false));
        assert!(is_expected(exit(75), &[Signal::Term], false));
        assert!(is_expected(exit(75), &[Signal::Hup], false));
        assert!(is_expected(exit(130), &[Signal::Int], false));
        assert!(is_expected(exit(130), &[Signal::Hup, Signal::Term], false));
        assert!(is_expected(signal(15), &[Signal::Term], true));
        for status in [signal(15), exit(1), exit(143), exit(130), exit(0)] {
            assert!(!is_expected(status, &[Signal::Term], false), "{status}");
        }
        assert!(!is_expected(exit(75), &[], false));
        assert!(!is_expected(exit(1), &[], false));
    }
}
