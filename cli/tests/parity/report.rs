use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::case::Case;
use crate::compare::{Worst, compare};
use crate::components::Component;
use crate::device::TestDevice;

/// What became of some cases.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) agreed: usize,
    /// Cases that the device can't compute.
    pub(crate) left_out: usize,
    /// One line per case that failed.
    pub(crate) failures: Vec<String>,
    /// Of the cases that the device computed, the one that comes closest to its bound.
    worst: Option<(String, Worst)>,
    /// By component.
    times: BTreeMap<String, Duration>,
}

/// What became of a case.
enum Outcome {
    Agrees(Worst),
    AgreesOnHost(Worst),
    /// The device has no arithmetic of the case's type.
    LeftOut,
}

/// Runs the cases one after the other, and prints a line for each as it is done.
pub(crate) fn run_all(folders: &[PathBuf], device: &TestDevice) -> Report {
    println!(
        "{:<25} {:<56} {:>6}  {:<34} worst output",
        "component", "case", "s", "off by"
    );
    let mut report = Report::default();
    for folder in folders {
        let start = Instant::now();
        let (component, outcome) = run(folder, device);
        report.add(folder, component, outcome, start.elapsed());
    }
    report
}

/// The component's name, if that much could be read, and the outcome.
fn run(folder: &Path, device: &TestDevice) -> (String, anyhow::Result<Outcome>) {
    let mut case = match Case::read(folder) {
        Ok(case) => case,
        Err(error) => return ("?".to_owned(), Err(error)),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        match Component::named(&case.component)? {
            Component::OnHost(compute) => {
                compare(&case, &compute(&case)?).map(Outcome::AgreesOnHost)
            }
            Component::OnDevice(_) if !device.computes_in(case.dtype) => Ok(Outcome::LeftOut),
            Component::OnDevice(compute) => {
                case.bound = device.bound(case.bound);
                compare(&case, &compute(&case, &device.device)?).map(Outcome::Agrees)
            }
        }
    }));
    let outcome = outcome.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message_of(&*panic))));
    (case.component, outcome)
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}

impl Report {
    fn add(
        &mut self,
        folder: &Path,
        component: String,
        outcome: anyhow::Result<Outcome>,
        time: Duration,
    ) {
        let name = folder.file_name().unwrap_or(folder.as_os_str());
        let name = name.to_string_lossy().into_owned();
        let seconds = time.as_secs_f64();
        print!("{component:<25} {name:<56} {seconds:>6.2}  ");
        *self.times.entry(component).or_default() += time;
        match outcome {
            Ok(Outcome::Agrees(worst)) => {
                println!("{:<34} {}", worst.distance.text, worst.output);
                self.agreed += 1;
                let before = self.worst.as_ref().map(|(_, worst)| worst.distance.share);
                if before.is_none_or(|before| worst.distance.share > before) {
                    self.worst = Some((name, worst));
                }
            }
            Ok(Outcome::AgreesOnHost(worst)) => {
                println!("{:<34} {}", worst.distance.text, worst.output);
                self.agreed += 1;
            }
            Ok(Outcome::LeftOut) => {
                println!("LEFT OUT: the device has no such arithmetic");
                self.left_out += 1;
            }
            Err(error) => {
                println!("FAILED");
                self.failures
                    .push(format!("{}: {error:#}", folder.display()));
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.times.iter();
        let times = times.map(|(component, time)| format!("{component} {:.1}", time.as_secs_f64()));
        writeln!(f, "seconds: {}", times.collect::<Vec<_>>().join(", "))?;
        if let Some((case, Worst { output, distance })) = &self.worst {
            let percent = 100.0 * distance.share;
            let text = &distance.text;
            writeln!(
                f,
                "worst: {case}, {output}: {text}, {percent:.0} % of what it may be"
            )?;
        }
        write!(
            f,
            "{} cases agree, {} failed, {} left out for their type",
            self.agreed,
            self.failures.len(),
            self.left_out
        )
    }
}
