//! Reports the operation in which a sequence hangs.

use super::op::Op;
use parking_lot::Mutex;
use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// An operation that takes this long hangs. None waits for longer than 30 s.
const FOR_EVER: Duration = Duration::from_secs(120);

static WATCHED: Mutex<Vec<Run>> = Mutex::new(Vec::new());

struct Run {
    id: usize,
    history: Vec<Op>,
    at: usize,
    since: Instant,
}

/// A sequence under way.
pub(crate) struct Watched(usize);

impl Watched {
    pub(crate) fn new(history: &[Op]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        static WATCH: Once = Once::new();
        WATCH.call_once(|| drop(thread::spawn(watch)));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        WATCHED.lock().push(Run { id, history: history.to_vec(), at: 0, since: Instant::now() });
        Self(id)
    }

    /// The sequence has reached its operation number `at`, from 1.
    pub(crate) fn step(&self, at: usize) {
        if let Some(run) = WATCHED.lock().iter_mut().find(|run| run.id == self.0) {
            run.at = at;
            run.since = Instant::now();
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHED.lock().retain(|run| run.id != self.0);
    }
}

fn watch() {
    loop {
        thread::sleep(Duration::from_secs(1));
        if let Some(run) = WATCHED.lock().iter().find(|run| run.since.elapsed() > FOR_EVER) {
            let history = super::text::print(&run.history[..run.at.min(run.history.len())]);
            // Past the test harness's capture, which this thread has inherited.
            let _ = writeln!(std::io::stderr(), "HANG: the last line of this does not end:\n{history}");
            std::process::abort();
        }
    }
}
