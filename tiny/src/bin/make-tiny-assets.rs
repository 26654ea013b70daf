//! Makes the tiny assets anew. `cargo xtask tiny` runs it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use retouch_tiny::train::{Options, Progress, make};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: make-tiny-assets [ASSETS_FOLDER [WORK_FOLDER]]";

fn main() -> ExitCode {
    let mut folders = std::env::args().skip(1).map(PathBuf::from);
    let options = Options {
        assets: folders.next().unwrap_or_else(|| "assets/tiny".into()),
        work: folders.next().unwrap_or_else(|| "target/tiny".into()),
        seed: 1,
    };
    if folders.next().is_some() {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    }
    let mut printer = Printer {
        start: Instant::now(),
        sum: 0.0,
        count: 0,
    };
    match make(&options, &mut |progress| printer.print(progress)) {
        Ok(report) => {
            println!("{report:#?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a line per hundred steps, with the mean loss since the last.
struct Printer {
    start: Instant,
    sum: f64,
    count: u32,
}

impl Printer {
    fn print(
        &mut self,
        Progress {
            stage,
            step,
            steps,
            loss,
        }: Progress,
    ) -> ControlFlow<()> {
        self.sum += loss;
        self.count += 1;
        if step.is_multiple_of(100) || step == steps {
            let loss = self.sum / f64::from(self.count);
            let seconds = self.start.elapsed().as_secs();
            println!("{seconds:>5} s  {stage} {step}/{steps}  loss {loss:.4}");
            (self.sum, self.count) = (0.0, 0);
        }
        ControlFlow::Continue(())
    }
}
