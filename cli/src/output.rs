//! Standard output, whose reader may leave before everything is said, as `head` does, or whose disk may be full.
//!
//! What that means depends on what is printed:
//!
//! * [`say!`](say) is for commands whose whole work is to print, such as `status`: a reader that leaves has seen enough.
//! * [`remark!`](remark) is for what is printed beside work whose result lies elsewhere, as `launch`, `sft` and the
//!   orders to a coordinator do: the work goes on, and the exit code says how it ended.
//! * [`result`] is for a result that is printed and nowhere else, such as `evaluate`'s: it has to arrive.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::exit;

use anyhow::Context;
use serde::Serialize;

use crate::exit::complain;

/// Prints a line to standard output like [`println!`]; see [`print`].
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Prints a line to standard output if it can be printed.
macro_rules! remark {
    ($($text:tt)*) => {
        $crate::output::try_print(format_args!("{}\n", format_args!($($text)*)))
    };
}

pub(crate) use {remark, say};

/// Prints to standard output. If its reader is gone, the process ends, well: nobody wants the rest.
///
/// The signal that ends other programs then is no help: it would also come where another process
/// closes a connection, and end whoever is writing to it.
pub(crate) fn print(text: impl Display) {
    match write(text) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(error) => {
            complain(format_args!(
                "error: cannot write to standard output: {error}"
            ));
            exit(1);
        }
    }
}

/// Prints to standard output; what can't be printed is left out.
pub(crate) fn try_print(text: impl Display) {
    let _ = write(text);
}

/// Prints to standard output what is nowhere else.
///
/// # Errors
/// If it does not arrive.
pub(crate) fn result(text: impl Display) -> anyhow::Result<()> {
    write(text).context("cannot write the result to standard output")
}

fn write(text: impl Display) -> io::Result<()> {
    let mut output = io::stdout().lock();
    write!(output, "{text}")?;
    output.flush()
}

/// One JSON document, and a line's end.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Prints one JSON document.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    print(json(value)?);
    Ok(())
}
