//! Standard output, whose reader may leave before everything is said, as `head` does.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::exit;

use serde::Serialize;

/// Prints to standard output like [`println!`]; see [`print`].
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

pub(crate) use say;

/// Prints to standard output. If its reader is gone, the process ends, well: nobody wants the rest.
///
/// The signal that ends other programs then is no help: it would also come where another process
/// closes a connection, and end whoever is writing to it.
pub(crate) fn print(text: impl Display) {
    match write!(std::io::stdout().lock(), "{text}") {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(error) => {
            eprintln!("error: cannot write to standard output: {error}");
            exit(1);
        }
    }
}

/// Prints one JSON document.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
