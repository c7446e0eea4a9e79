//! What a region is to do: its two files as the first word of each page.

use super::op::{Op, Verb};
use crate::PAGE;
use revocable_mmio::OnDisabled;

/// Pages of the region.
pub(super) const PAGES: usize = 4;
const LEN: usize = PAGES * PAGE;
const ONES: u64 = u64::MAX;

/// What an operation returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Whatever it is.
    Any,
    /// Whether anything changed.
    Changed(bool),
    Done,
    Value(u64),
    /// No memory, or no access.
    Refused,
    /// A system call's result, or its errno.
    Call(&'static str),
}

pub(super) struct Model {
    policy: OnDisabled,
    pub(super) enabled: bool,
    /// The size of the window's file, in bytes, and the first word of each of its pages.
    pub(super) size: usize,
    window: Vec<u64>,
    /// The content while it is withdrawn.
    pub(super) vault: [u64; PAGES],
    pub(super) lost: u64,
}

impl Model {
    /// Enabled, and all zeroes.
    pub(super) fn new(policy: OnDisabled) -> Self {
        Self { policy, enabled: true, size: LEN, window: vec![0; PAGES], vault: [0; PAGES], lost: 0 }
    }

    /// What a peer loads from a page.
    pub(super) fn load(&self, page: usize) -> Answer {
        self.window.get(page).filter(|_| page < PAGES).map_or(Answer::Refused, |value| Answer::Value(*value))
    }

    fn store(&mut self, page: usize, value: u64) -> Answer {
        match self.window.get_mut(page).filter(|_| page < PAGES) {
            Some(word) => {
                *word = value;
                Answer::Done
            }
            None => Answer::Refused,
        }
    }

    fn resize(&mut self, size: usize) {
        self.size = size;
        self.window.resize(size.div_ceil(PAGE), 0);
    }

    fn is_sealed(&self) -> bool {
        self.policy == OnDisabled::AllOnes
    }

    fn disable(&mut self) -> bool {
        if !std::mem::replace(&mut self.enabled, false) {
            return false;
        }
        self.lost += LEN.saturating_sub(self.size) as u64;
        self.vault = std::array::from_fn(|page| self.window.get(page).copied().unwrap_or(0));
        self.resize(0);
        if self.is_sealed() {
            (self.size, self.window) = (LEN, vec![ONES; PAGES]);
        }
        true
    }

    fn enable(&mut self) -> bool {
        if std::mem::replace(&mut self.enabled, true) {
            return false;
        }
        (self.size, self.window) = (LEN, self.vault.to_vec());
        true
    }

    /// By the owner's view, which has the vault while the content is there.
    fn owner(&mut self, page: usize, value: Option<u64>) -> Answer {
        match (self.enabled, value) {
            _ if page >= PAGES => Answer::Refused,
            (true, None) => self.load(page),
            (true, Some(value)) => self.store(page, value),
            (false, None) => Answer::Value(self.vault[page]),
            (false, Some(value)) => {
                self.vault[page] = value;
                Answer::Done
            }
        }
    }

    /// What it returns; it is done.
    pub(super) fn apply(&mut self, op: &Op) -> Answer {
        let Op { verb, page, value } = *op;
        match verb {
            Verb::Disable => Answer::Changed(self.disable()),
            Verb::Enable => Answer::Changed(self.enable()),
            Verb::Reset => {
                let was = self.disable();
                let stored = self.owner(page, Some(value));
                if was {
                    self.enable();
                }
                stored
            }
            Verb::OwnerStore => self.owner(page, Some(value)),
            Verb::OwnerLoad => self.owner(page, None),
            Verb::OwnStore | Verb::OwnLoad if !self.enabled => Answer::Refused,
            Verb::OwnStore | Verb::Store => self.store(page, value),
            Verb::OwnLoad | Verb::Load => self.load(page),
            Verb::Truncate => {
                let size = truncated(op);
                if self.is_sealed() && size != self.size {
                    return Answer::Call("EPERM");
                }
                self.resize(size);
                Answer::Call("0")
            }
            Verb::Punch => {
                let count = punched(op);
                self.window.iter_mut().skip(page).take(count).for_each(|word| *word = 0);
                Answer::Call(if count == 0 { "EINVAL" } else { "0" })
            }
            Verb::Write => {
                let end = page * PAGE + 8;
                if end > self.size && self.is_sealed() {
                    return Answer::Call("EPERM");
                }
                if end > self.size {
                    self.resize(end);
                }
                self.window[page] = value;
                Answer::Call("8")
            }
            Verb::Seal => Answer::Call("EPERM"),
            Verb::Advise | Verb::Lock | Verb::Again => Answer::Any,
            Verb::Remap | Verb::Map => Answer::Done,
            Verb::Fork => Answer::Call("0"),
        }
    }
}

/// The size that a file is truncated to: the word at the start of its last page stays.
pub(super) fn truncated(op: &Op) -> usize {
    op.page * PAGE + [0, 8, PAGE / 2][(op.value % 3) as usize]
}

/// The number of pages of a hole.
pub(super) fn punched(op: &Op) -> usize {
    (op.value % 4) as usize
}
