//! Panics are bugs of this program: each is logged with its place, and whoever catches one can say where it was. But for
//! one: the backend panics as well where a device has no memory left.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    collections::VecDeque,
    io::{self, Write},
    panic::{self, PanicHookInfo},
    sync::{Mutex, Once, OnceLock, PoisonError},
    thread,
};

/// Places that are remembered: as many threads may panic at once.
const REMEMBERED: usize = 32;
const OURS: &str = "this is a bug in retouch, please report it";
/// What the backend says of a device that has no memory left, before a number of bytes.
const OUT_OF_MEMORY: &str = "out of device memory allocating ";
/// What the driver says where there is none for the backend to begin with.
const NOTHING_FREE: &str = "CUDA_ERROR_OUT_OF_MEMORY";
/// What whoever waits for the backend's thread is told when that has panicked.
const THREAD_GONE: &str = "RecvError";

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
    let memory = out_of_memory(&message);
    let is_bug = memory.is_none();
    if tracing::dispatcher::has_been_set() {
        let said = memory.unwrap_or_else(|| format!("panicked: {message}; {OURS}"));
        tracing::error!(thread, place, "{said}");
    } else {
        let said = memory
            .unwrap_or_else(|| format!("thread {thread} panicked at {place}: {message}; {OURS}"));
        // Nothing can be done about a terminal that is gone.
        let _ = writeln!(io::stderr(), "error: {said}");
    }
    let backtrace = Backtrace::capture();
    if is_bug && backtrace.status() == BacktraceStatus::Captured {
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
    if let Some(said) = out_of_memory(&message) {
        return said;
    }
    let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = places.iter().rev().find(|place| place.message == message);
    match place {
        Some(Place { place, .. }) => format!("{message} (at {place}; {OURS})"),
        None => message,
    }
}

/// Whether a caught panic is no bug, but a device that has no memory left; [`report`] has said so.
pub fn is_out_of_memory(panic: &(dyn Any + Send)) -> bool {
    out_of_memory(&message(panic)).is_some()
}

/// What there is to say if that is what the backend says.
fn out_of_memory(message: &str) -> Option<String> {
    static FULL: OnceLock<String> = OnceLock::new();
    if let Some((_, rest)) = message.split_once(OUT_OF_MEMORY) {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        let mib = digits.parse::<u64>().ok()?.div_ceil(1 << 20);
        return Some(format!(
            "the device is out of memory: it has no {mib} MiB more; smaller images, groups or micro batches take less, and \
             `retouch model check FOLDER --run RUN.toml` says how much each role takes"
        ));
    }
    if message.contains(NOTHING_FREE) {
        let said = "the device is out of memory: there is none for the program to begin with; `retouch devices` says how \
                    much is free, nvidia-smi who has the rest";
        return Some(FULL.get_or_init(|| said.to_owned()).clone());
    }
    let is_told = message.contains(THREAD_GONE);
    FULL.get().filter(|_| is_told).cloned()
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

    #[test]
    fn a_device_without_memory_is_no_bug() {
        let caught = thread::spawn(|| {
            let causes = "An IO error happened\nCaused by:\n  out of device memory allocating 8388609 bytes\nNo backtrace";
            panic!("Error while reading data: Several failures at once\nCaused by:\n{causes}")
        });
        let caught = caught.join().unwrap_err();
        assert!(is_out_of_memory(&*caught));
        let said = panic_message(&*caught);
        assert!(
            said.contains("it has no 9 MiB more") && !said.contains(OURS),
            "{said}"
        );
        assert!(!is_out_of_memory(&"shape 17"));
    }

    #[test]
    fn a_device_that_others_fill_is_no_bug_for_any_thread() {
        let waits = "called `Result::unwrap()` on an `Err` value: RecvError";
        assert!(!is_out_of_memory(&waits));
        let begins = "called `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        for message in [begins, waits] {
            assert!(panic_message(&message).contains("nvidia-smi"), "{message}");
        }
    }
}
