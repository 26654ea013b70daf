//! `retouch top`: a run in a terminal, live, with keys to steer it.
//!
//! In reading order: `model` is what is known and what keys do (no terminal, no network), `screen` draws it, and this
//! file feeds the one and shows the other.

mod model;
mod screen;

use std::{
    io::{IsTerminal, Stdout},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use ratatui::{
    Terminal,
    backend::{Backend, ClearType, TermionBackend},
    termion::{
        event::Key as TerminalKey,
        input::TermRead,
        raw::{IntoRawMode, RawTerminal},
        screen::{AlternateScreen, IntoAlternateScreen},
    },
};
use retouch_coordinator::Command;
use tokio::sync::mpsc;

use self::model::{Input, Key, LOG_MAX, Top, Wish};
use super::{
    control_grpc::{ControlClient, Until, is_end},
    record::{View, record_of},
    target::Target,
};
use crate::exit::UsageError;

const REFRESH_EVERY: Duration = Duration::from_secs(1);
const INPUTS_MAX: usize = 1024;

/// The terminal as it was comes back when this is dropped.
type Screen = Terminal<TermionBackend<AlternateScreen<RawTerminal<Stdout>>>>;

/// Watch and steer a run in a terminal.
///
/// A live screen of the run: progress, throughput of each stage, the reward trend, every worker, what happens. Arrows,
/// page keys, Home and End select a worker. Keys drain or restart it, pause and resume the run, make a checkpoint, drain
/// or stop the run. A run whose coordinator has ended is shown as its record has it, if its folder is here.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(args: TopArgs) -> anyhow::Result<()> {
    if !std::io::stdout().is_terminal() {
        let problem = "top needs a terminal; `status` and `events` do without";
        return Err(UsageError(problem.to_owned()).into());
    }
    // A wrong address or token is told before the screen is taken.
    View::of(&args.target).await?;
    let (sender, inputs) = mpsc::channel(INPUTS_MAX);
    let feeds = [
        tokio::spawn(feed_status(args.target.clone(), sender.clone())),
        tokio::spawn(feed_events(args.target.clone(), sender.clone())),
    ];
    let mut screen = take_terminal().context("can't take the terminal")?;
    let keys = sender.clone();
    std::thread::spawn(move || read_keys(&keys));
    let result = show(&mut screen, inputs, &args.target, &sender).await;
    let _ = screen.show_cursor();
    feeds.iter().for_each(tokio::task::JoinHandle::abort);
    result
}

fn take_terminal() -> std::io::Result<Screen> {
    let output = std::io::stdout().into_raw_mode()?.into_alternate_screen()?;
    let mut screen = Terminal::new(TermionBackend::new(output))?;
    // `Terminal::clear` would ask the terminal where its cursor is, and read the answer among the keys.
    screen.backend_mut().clear_region(ClearType::All)?;
    screen.hide_cursor()?;
    Ok(screen)
}

/// Draws after every input until a key ends it.
async fn show(
    terminal: &mut Screen,
    mut inputs: mpsc::Receiver<Input>,
    target: &Target,
    sender: &mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let mut top = Top::default();
    loop {
        terminal.draw(|frame| screen::draw(frame, &top))?;
        let Some(input) = inputs.recv().await else {
            return Ok(());
        };
        let mut next = Some(input);
        while let Some(input) = next {
            match top.handle(input) {
                Some(Wish::Quit) => return Ok(()),
                Some(Wish::Tell(command)) => {
                    tokio::spawn(tell(target.clone(), command, sender.clone()));
                }
                None => {}
            }
            next = inputs.try_recv().ok();
        }
    }
}

async fn tell(target: Target, command: Command, sender: mpsc::Sender<Input>) {
    let answer = async { ControlClient::connect(&target).await?.tell(command).await };
    let answer = match answer.await {
        Ok(answer) => answer.message,
        Err(error) => error.to_string(),
    };
    let _ = sender.send(Input::Answer(answer)).await;
}

async fn feed_status(target: Target, sender: mpsc::Sender<Input>) {
    loop {
        if let Err(error) = follow_status(&target, &sender).await {
            show_recorded(&target, &sender, error).await;
        }
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}

/// Until the coordinator goes away.
async fn follow_status(target: &Target, sender: &mpsc::Sender<Input>) -> anyhow::Result<()> {
    let mut control = ControlClient::connect(target).await?;
    loop {
        let status = Box::new(control.status().await?);
        sender.send(Input::Status(status)).await?;
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}

/// What the record says of a run whose coordinator went away with this error.
async fn show_recorded(target: &Target, sender: &mpsc::Sender<Input>, error: anyhow::Error) {
    let away = match View::of_record(target, error) {
        Ok(view) => {
            let note = view.note().unwrap_or_default();
            let _ = sender.send(Input::Status(Box::new(view.status))).await;
            note
        }
        Err(error) => error.to_string(),
    };
    let _ = sender.send(Input::Away(away)).await;
}

async fn feed_events(target: Target, sender: mpsc::Sender<Input>) {
    let mut last = 0;
    // The status tells when the coordinator is away.
    while let Err(error) = follow_events(&target, &sender, &mut last).await {
        let recorded = record_of(&target, error).and_then(|record| Ok(record.events(LOG_MAX)?));
        for event in recorded.unwrap_or_default() {
            if event.sequence > last {
                last = event.sequence;
                let _ = sender.send(Input::Event(event)).await;
            }
        }
        tokio::time::sleep(REFRESH_EVERY).await;
    }
}

async fn follow_events(
    target: &Target,
    sender: &mpsc::Sender<Input>,
    last: &mut u64,
) -> anyhow::Result<()> {
    let mut control = ControlClient::connect(target).await?;
    let mut events = control.events(*last, Until::TheEnd).await?;
    while let Some(event) = events.next().await? {
        *last = event.sequence;
        let is_end = is_end(&event);
        sender.send(Input::Event(event)).await?;
        if is_end {
            return Ok(());
        }
    }
    anyhow::bail!("the coordinator ended the stream")
}

/// Reads keys on a thread of its own until nobody wants them; it ends with the process, since a read can't be ended.
fn read_keys(sender: &mpsc::Sender<Input>) {
    for pressed in std::io::stdin().keys() {
        let Ok(pressed) = pressed else { return };
        if let Some(key) = key(pressed)
            && sender.blocking_send(Input::Key(key)).is_err()
        {
            return;
        }
    }
}

fn key(pressed: TerminalKey) -> Option<Key> {
    match pressed {
        TerminalKey::Ctrl('c') => Some(Key::Char('q')),
        TerminalKey::Char(c) => Some(Key::Char(c)),
        TerminalKey::Up => Some(Key::Up),
        TerminalKey::Down => Some(Key::Down),
        TerminalKey::PageUp => Some(Key::PageUp),
        TerminalKey::PageDown => Some(Key::PageDown),
        TerminalKey::Home => Some(Key::Home),
        TerminalKey::End => Some(Key::End),
        TerminalKey::Esc => Some(Key::Escape),
        _ => None,
    }
}
