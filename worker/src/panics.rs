//! Panics are bugs of this program: each is logged with its place, and whoever catches one can say where it was.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    collections::VecDeque,
    io::{self, Write},
    panic::{self, PanicHookInfo},
    sync::{Mutex, Once, PoisonError},
    thread,
};

/// Places that are remembered: as many threads may panic at once.
const REMEMBERED: usize = 32;
const OURS: &str = "this is a bug in retouch, please report it";

/// A panic's payload says nothing of its place, and may be caught by another thread than the one that panicked.
struct Place {
    message: String,
    place: String,
}

static PLACES: Mutex<VecDeque<Place>> = Mutex::new(VecDeque::new());

/// Has every panic of this process logged in one line: thread, place, message. A second call changes nothing.
pub fn report() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| panic::set_hook(Box::new(hook)));
}

fn hook(info: &PanicHookInfo<'_>) {
    let message = message(info.payload());
    let place = info
        .location()
        .map_or_else(String::new, ToString::to_string);
    let thread = thread::current();
    let thread = thread.name().unwrap_or("without a name").to_owned();
    if tracing::dispatcher::has_been_set() {
        tracing::error!(thread, place, "panicked: {message}; {OURS}");
    } else {
        // Nothing can be done about a terminal that is gone.
        let line = format!("error: thread {thread} panicked at {place}: {message}; {OURS}");
        let _ = writeln!(io::stderr(), "{line}");
    }
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        let _ = writeln!(io::stderr(), "{backtrace}");
    }
    remember(Place { message, place });
}

fn remember(place: Place) {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    if places.len() == REMEMBERED {
        places.pop_front();
    }
    places.push_back(place);
}

/// What a caught panic said, and where if [`report`] was called.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let message = message(panic);
    let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = places.iter().rev().find(|place| place.message == message);
    match place {
        Some(Place { place, .. }) => format!("{message} (at {place}; {OURS})"),
        None => message,
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_with_its_place_on_any_thread() {
        report();
        let caught = thread::spawn(|| panic!("shape {}", 17)).join().unwrap_err();
        let said = panic_message(&*caught);
        assert!(said.starts_with("shape 17 (at "), "{said}");
        let line = format!("{}:", file!());
        assert!(said.contains(&line) && said.contains(OURS), "{said}");
    }
}
