//! What an operation answers, and what it may answer.

use super::super::op::Memory;
use revocable_mmio::fault::Outcome;
use revocable_mmio::{AccessError, CopyError, FaultError, PinError, Strategy};

/// What the machine can do, as far as answers depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// A userfaultfd can be had at all.
    pub(crate) userfaultfd: bool,
    /// Its faults include those of system calls.
    pub(crate) kernel_faults: bool,
    pub(crate) is_legal: fn(Strategy, Memory) -> bool,
}

/// What an operation answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Done,
    Changed(bool),
    Bytes(Vec<u8>),
    /// A compare-and-exchange that found something else.
    Found(Vec<u8>),
    Fault(Outcome),
    Refused(AccessError),
    Stopped(CopyError),
    NotPinned(PinError),
    NotFaulted(FaultError),
    /// A region or mapping was not made, for this reason.
    NotMade(&'static str),
    /// Rights are as before, for this reason.
    NotProtected(&'static str),
    /// A system call failed in a change of state.
    Failed {
        /// A reset's callback was called.
        ran: bool,
        /// The slots of the regions that are enabled now.
        enabled: usize,
    },
    /// A change of state did not happen: so many guards and pins were in the way.
    Busy {
        guards: u64,
        pins: usize,
    },
    TimedOut {
        guards: u64,
        pins: usize,
    },
    WouldDeadlock {
        guards: u64,
    },
    Gone,
    /// A raw access met SIGBUS at the very byte.
    Bus,
    /// A raw access met another signal, at the very byte.
    Signal,
    /// A system call's errno.
    Errno(i32),
}

/// What may be answered.
#[derive(Clone, Debug)]
pub(crate) enum Allowed {
    Is(Answer),
    /// Bytes that may each be one of two values.
    Either(Vec<[u8; 2]>),
    AnySignal,
    /// Whatever the reason.
    NotMade,
    /// These slots' regions are still enabled, at the least.
    Failed {
        enabled: usize,
    },
}

impl Allowed {
    pub(crate) fn admits(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Allowed::Is(expected), answer) => expected == answer,
            (Allowed::Either(bytes), Answer::Bytes(got)) => {
                bytes.len() == got.len() && bytes.iter().zip(got).all(|(may, byte)| may.contains(byte))
            }
            (Allowed::AnySignal, answer) => matches!(answer, Answer::Bus | Answer::Signal),
            (Allowed::NotMade, answer) => matches!(answer, Answer::NotMade(_)),
            (Allowed::Failed { enabled: should }, Answer::Failed { enabled, .. }) => enabled & should == *should,
            (Allowed::Either(_) | Allowed::Failed { .. }, _) => false,
        }
    }
}

/// `None`: nothing to do, as a slot is empty or the caller would wait for itself.
pub(crate) type Expected = Option<Vec<Allowed>>;

pub(crate) fn is(answer: Answer) -> Vec<Allowed> {
    vec![Allowed::Is(answer)]
}
