//! Makes the tiny assets anew. `cargo xtask tiny` runs it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use retouch_tiny::train::{Options, Progress, make};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "\
Makes the tiny assets: dataset, editor, judge and the report of what was measured.

Usage: make-tiny-assets [ASSETS_FOLDER [WORK_FOLDER]]

  ASSETS_FOLDER  Where the assets go [default: assets/tiny]
  WORK_FOLDER    What is needed on the way; an interrupted making goes on from it
                 [default: target/tiny]
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|it| it == "--help" || it == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if let Some(option) = arguments.iter().find(|it| it.starts_with('-')) {
        eprint!("error: unknown option '{option}'\n\n{USAGE}");
        return ExitCode::FAILURE;
    }
    if let Some(surplus) = arguments.get(2) {
        eprint!("error: unexpected argument '{surplus}'\n\n{USAGE}");
        return ExitCode::FAILURE;
    }
    let folder = |index: usize, default: &str| {
        PathBuf::from(arguments.get(index).map_or(default, String::as_str))
    };
    let options = Options {
        assets: folder(0, "assets/tiny"),
        work: folder(1, "target/tiny"),
        seed: 1,
    };
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
