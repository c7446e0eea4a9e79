//! Threads that wait for a region.

use super::super::model::{Answer, Model};
use super::super::op::{Via, Waiter};
use super::access::{load, store};
use revocable_mmio::{AccessError, Mapping};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// A thread that waits for a region.
pub(crate) struct Waiting {
    pub(crate) region: usize,
    what: Waiter,
    /// The offset in the region.
    at: usize,
    /// The model's count of losses when the wait began.
    wants: usize,
    pub(super) thread: JoinHandle<Answer>,
}

impl Waiting {
    pub(super) fn start(mapping: Arc<Mapping>, region: usize, what: Waiter, offset: usize, wants: usize) -> Self {
        let at = mapping.offset() + offset;
        let access = move || match what {
            Waiter::Load => load::<u64>(&mapping, Via::Accessor, offset),
            Waiter::Store(value) => store::<u64>(&mapping, Via::Accessor, offset, value),
            Waiter::Raw => load::<u64>(&mapping, Via::Raw, offset),
        };
        Self { region, what, at, wants, thread: thread::spawn(access) }
    }

    /// Joins the thread, which has ended or will soon, and checks its result.
    pub(crate) fn join(self, gone: bool, model: &mut Model) -> Result<(), String> {
        let answer = self.thread.join().map_err(|_| "a waiting thread panicked".to_owned())?;
        let wanting = self.wants != model.wants;
        let content = || Answer::Bytes(model.regions[self.region].bytes[self.at..self.at + 8].to_vec());
        // After a loss the range may be unmapped or plain memory. Neither is the region's memory.
        let otherwise = match (&answer, self.what) {
            (Answer::Refused(AccessError::NoMemory { .. } | AccessError::Protected { .. }), _) => wanting,
            (Answer::Bytes(bytes), Waiter::Raw) => wanting && bytes.iter().all(|byte| *byte == 0),
            (Answer::Bus | Answer::Signal, Waiter::Raw) => wanting,
            _ => false,
        };
        let as_it_should = match (gone, self.what) {
            (true, Waiter::Load | Waiter::Store(_)) => matches!(answer, Answer::Refused(AccessError::Gone { .. })),
            (true, Waiter::Raw) => answer == Answer::Bus,
            (false, Waiter::Store(_)) => answer == Answer::Done,
            (false, _) => answer == content(),
        };
        if !as_it_should && !otherwise {
            return Err(format!("a waiting thread ({:?}) got {answer:x?}, not {:x?}", self.what, content()));
        }
        if let (Waiter::Store(value), Answer::Done) = (self.what, &answer) {
            model.stored(self.region, self.at, value);
        }
        Ok(())
    }
}
