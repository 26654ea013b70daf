//! `retouch top`: a run in a terminal, live, with keys to steer it.
//!
//! In reading order: `model` is what is known and what keys do (no terminal, no network), `screen` draws it, and this
//! file feeds the one and shows the other.

mod model;
mod screen;

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{Event as TerminalEvent, KeyCode, KeyEventKind, KeyModifiers, poll, read},
};
use tokio::sync::mpsc;

use self::model::{Input, Key, Top, Wish};
use crate::{
    control::{Command, ControlClient, Target},
    events::is_end,
    exit::UsageError,
    grpc::Until,
};

const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// How long the thread that reads keys waits before it looks whether it is still wanted.
const KEY_WAIT: Duration = Duration::from_millis(200);
const INPUTS_MAX: usize = 1024;

/// A live screen of the run: progress, throughput of each stage, the reward trend, every worker, what happens. Keys
/// drain or restart the selected worker, pause and resume the run, make a checkpoint, drain or stop the run.
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
    ControlClient::connect(&args.target).await?.status().await?;
    let (sender, inputs) = mpsc::channel(INPUTS_MAX);
    let keys = sender.clone();
    std::thread::spawn(move || read_keys(&keys));
    let feeds = [
        tokio::spawn(feed_status(args.target.clone(), sender.clone())),
        tokio::spawn(feed_events(args.target.clone(), sender.clone())),
    ];
    let mut terminal = ratatui::init();
    let result = show(&mut terminal, inputs, &args.target, &sender).await;
    ratatui::restore();
    feeds.iter().for_each(tokio::task::JoinHandle::abort);
    result
}

/// Draws after every input until a key ends it.
async fn show(
    terminal: &mut DefaultTerminal,
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
            let _ = sender.send(Input::Away(error.to_string())).await;
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

async fn feed_events(target: Target, sender: mpsc::Sender<Input>) {
    let mut last = 0;
    // The status tells when the coordinator is away.
    while follow_events(&target, &sender, &mut last).await.is_err() {
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

/// Reads keys on a thread of its own until nobody wants them.
fn read_keys(sender: &mpsc::Sender<Input>) {
    while !sender.is_closed() {
        match poll(KEY_WAIT) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => return,
        }
        let Ok(event) = read() else { return };
        if let Some(key) = key(&event)
            && sender.blocking_send(Input::Key(key)).is_err()
        {
            return;
        }
    }
}

fn key(event: &TerminalEvent) -> Option<Key> {
    let TerminalEvent::Key(key) = event else {
        return None;
    };
    if key.kind != KeyEventKind::Press {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Char('q')),
        KeyCode::Char(c) => Some(Key::Char(c)),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::Esc => Some(Key::Escape),
        _ => None,
    }
}
