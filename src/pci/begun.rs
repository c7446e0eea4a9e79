//! Writes to configuration space that are begun, and completed by a thread of the device's.
//!
//! The thread starts with the first write that has to wait for its turn or for anything else, makes the writes in the order
//! in which they were begun, and ends with the last.

use super::error::PciError;
use crate::sync::wait::{CancelToken, Event};
use crate::sys::SysError;
use crate::sys::identity::Identity;
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A write to configuration space that was begun by [`PciDevice::begin_write`](super::PciDevice::begin_write). Dropping it
/// does not call the write off: only its result is lost. In a forked child the write is the parent's: done, with
/// [`PciError::Forked`].
///
/// ```
/// use revocable_mmio::CancelToken;
/// use revocable_mmio::pci::{Bar, PciDevice};
/// use std::time::Duration;
///
/// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).build()?;
/// let write = nic.begin_write(4, &[0, 0])?; // PCI_COMMAND: memory off
/// let kick = CancelToken::new(); // cancelled to get the thread back
/// while !write.wait_unless(&kick) { /* interrupts, and a new token */ }
/// assert!(write.is_done() && write.wait_timeout(Duration::ZERO));
/// assert!(matches!(write.result(), Some(Ok(()))));
/// assert!(write.result().is_none(), "taken");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BegunWrite(Arc<Completion>);

pub(super) struct Completion {
    result: Mutex<Outcome>,
    ended: Event,
    /// Readable once it is done.
    signal: EventFd,
    /// The process whose thread makes it. In a forked child that thread is not there, and may have held the lock.
    process: Identity,
}

enum Outcome {
    UnderWay,
    Done(Result<(), PciError>),
    Taken,
}

impl Completion {
    pub(super) fn new() -> Result<Arc<Self>, PciError> {
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let signal = signal.map_err(|e| SysError::new("eventfd", e))?;
        let (result, process) = (Mutex::new(Outcome::UnderWay), Identity::current());
        Ok(Arc::new(Self { result, ended: Event::new(), signal, process }))
    }

    pub(super) fn complete(&self, result: Result<(), PciError>) {
        *self.result.lock() = Outcome::Done(result);
        let _ = self.signal.write(1);
        self.ended.notify_all();
    }

    fn is_under_way(&self) -> bool {
        self.process.is_current() && matches!(*self.result.lock(), Outcome::UnderWay)
    }
}

impl BegunWrite {
    pub(super) fn new(completion: &Arc<Completion>) -> Self {
        Self(Arc::clone(completion))
    }

    /// True once the write is complete: the register shows it, or it has failed.
    pub fn is_done(&self) -> bool {
        !self.0.is_under_way()
    }

    /// Waits at most this long. True if the write is complete.
    ///
    /// # Blocking
    /// From inside the device's own reset, notifiers or maps the write cannot complete: there, use a short time only.
    pub fn wait_timeout(&self, patience: Duration) -> bool {
        let deadline = Instant::now().checked_add(patience);
        let _ = self.0.ended.wait_while(|| self.0.is_under_way(), None, deadline);
        self.is_done()
    }

    /// Waits until the write is complete or `cancel` is cancelled. True if the write is complete; if it is not, it goes on.
    ///
    /// # Blocking
    /// As [`wait_timeout`](Self::wait_timeout).
    pub fn wait_unless(&self, cancel: &CancelToken) -> bool {
        let _ = self.0.ended.wait_while(|| self.0.is_under_way(), Some(cancel), None);
        self.is_done()
    }

    /// The result, once; `None` while the write is under way, and after the result was taken. In a forked child always
    /// [`PciError::Forked`].
    pub fn result(&self) -> Option<Result<(), PciError>> {
        if !self.0.process.is_current() {
            return Some(Err(PciError::Forked));
        }
        let mut result = self.0.result.lock();
        match std::mem::replace(&mut *result, Outcome::Taken) {
            Outcome::Done(done) => Some(done),
            other => {
                *result = other;
                None
            }
        }
    }
}

/// An eventfd that is readable once the write is complete.
impl AsFd for BegunWrite {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.signal.as_fd()
    }
}

impl fmt::Debug for BegunWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BegunWrite").field("done", &self.is_done()).finish()
    }
}

/// A write that has been begun.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) completion: Arc<Completion>,
}

/// The writes that have been begun, in order, and the process that makes them.
pub(super) struct BegunWrites(Mutex<Queue>, Identity, Event);

impl Default for BegunWrites {
    fn default() -> Self {
        Self(Mutex::default(), Identity::current(), Event::new())
    }
}

impl Drop for BegunWrites {
    fn drop(&mut self) {
        if !self.1.is_current() {
            // As another thread of the parent's may have left it in the middle of a change.
            std::mem::forget(std::mem::take(self.0.get_mut()));
        }
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// A thread makes them.
    running: bool,
}

impl BegunWrites {
    /// True if there is none, not even one that is being made.
    pub(super) fn is_empty(&self) -> bool {
        !self.0.lock().running
    }

    /// Adds one; `start` starts a thread, if there is none.
    pub(super) fn push(&self, job: Job, start: impl FnOnce() -> Result<(), SysError>) -> Result<(), PciError> {
        let mut queue = self.0.lock();
        if !queue.running {
            start()?;
            queue.running = true;
        }
        queue.jobs.push_back(job);
        Ok(())
    }

    /// The next one, for the thread that makes them; with `None` that thread ends. It stays in the queue until it is
    /// [made](Self::made).
    pub(super) fn next(&self) -> Option<Job> {
        let mut queue = self.0.lock();
        let next = queue.jobs.front().cloned();
        queue.running = next.is_some();
        drop(queue);
        if next.is_none() {
            self.2.notify_all();
        }
        next
    }

    /// Waits until all are made. Not for a thread that one of them waits for.
    pub(super) fn wait(&self) {
        let _ = self.2.wait_while(|| !self.is_empty(), None, None);
    }

    pub(super) fn made(&self) {
        let made = self.0.lock().jobs.pop_front();
        drop(made);
    }

    /// True in the process whose thread makes them.
    pub(super) fn are_of_this_process(&self) -> bool {
        self.1.is_current()
    }

    /// Those that are not complete: where, and the bytes, of the first without as many as are `made`. None in a forked
    /// child.
    pub(super) fn pending(&self, made: usize) -> Vec<(u64, Vec<u8>)> {
        if !self.are_of_this_process() {
            return Vec::new();
        }
        let queue = self.0.lock();
        let made = std::iter::once(made).chain(std::iter::repeat(0));
        let left = queue.jobs.iter().zip(made).map(|(job, made)| (job.at + made as u64, job.bytes[made..].to_vec()));
        left.filter(|(_, bytes)| !bytes.is_empty()).collect()
    }
}
