//! Writes the tiny random Qwen-Image-Edit-2509 that `examples/smoke-qwen.toml` runs on.

use std::path::PathBuf;
use std::process::ExitCode;

use retouch_tiny::qwen_editor;

const USAGE: &str = "\
Writes a tiny Qwen-Image-Edit-2509 of random weights, a diffusers pipeline folder.

Usage: make-qwen-editor [FOLDER]

  FOLDER  Where it goes [default: target/tiny/qwen-editor]
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|it| it == "--help" || it == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if arguments.len() > 1 || arguments.iter().any(|it| it.starts_with('-')) {
        eprint!("error: expected one folder, found {arguments:?}\n\n{USAGE}");
        return ExitCode::FAILURE;
    }
    let default = || PathBuf::from("target/tiny/qwen-editor");
    let folder = arguments.first().map_or_else(default, PathBuf::from);
    match qwen_editor::init(&folder, 1) {
        Ok(()) => {
            println!("{}", folder.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
