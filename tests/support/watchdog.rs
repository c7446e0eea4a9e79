//! A watchdog thread: if nothing makes progress for too long, it prints the state of every thread and ends the process.
//! Otherwise a hang would leave no trace.

use super::read_text;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Watches until it is dropped.
pub(crate) struct Watchdog {
    beats: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Ends the process if `patience` passes without a [`beat`](Self::beat). The patience is longer on an emulated
    /// machine.
    pub(crate) fn new(what: &str, patience: Duration) -> Self {
        let patience = super::patience(patience);
        let (beats, heard) = channel();
        let what = what.to_owned();
        let watch = move || {
            loop {
                match heard.recv_timeout(patience) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        let hung = format!("WATCHDOG: {what}: nothing moved for {patience:?}\n{}", threads_of("self"));
                        let _ = std::io::stderr().write_all(hung.as_bytes());
                        std::process::abort();
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("watchdog".to_owned()).spawn(watch).expect("a thread can be had");
        Self { beats: Some(beats), thread: Some(thread) }
    }

    /// Reports progress.
    pub(crate) fn beat(&self) {
        let _ = self.beats.as_ref().map(|beats| beats.send(()));
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.beats.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The state of each thread of a process: its name, its state, its wait channel in the kernel, its system call, and
/// (for root) its kernel stack.
pub(crate) fn threads_of(process: &str) -> String {
    let mut text = String::new();
    for task in std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
        let read = |name| read_text(task.path().join(name));
        let stat = read("stat");
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned();
        let (tid, name) = (task.file_name(), read("comm"));
        text += &format!(
            "{} {} {state} {} {}\n",
            tid.to_string_lossy(),
            name.trim(),
            read("wchan"),
            read("syscall").trim()
        );
        for frame in read("stack").lines() {
            text += &format!("    {frame}\n");
        }
    }
    text
}
