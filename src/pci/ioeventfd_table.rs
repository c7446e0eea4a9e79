//! The ioeventfds of a device.

use super::kicks::{IoEventLoop, Registration};
use crate::ioeventfd::Width;
use crate::sys::identity::Identity;
use parking_lot::Mutex;

/// How many ioeventfds a device can have (`VFIO_PCI_IOEVENTFD_MAX`).
pub const MOST_IOEVENTFDS: usize = 1000;

/// A device's ioeventfds.
pub(super) struct IoEventFds {
    /// The loop that waits for them; without one of the caller's, the process's shared loop from the first ioeventfd on.
    pub(super) kicks: Mutex<Option<IoEventLoop>>,
    pub(super) list: Mutex<Vec<(Write, Registration)>>,
    /// The process that they belong to: a forked child has none.
    pub(super) process: Identity,
}

impl IoEventFds {
    pub(super) fn new(kicks: Option<IoEventLoop>) -> Self {
        Self { kicks: Mutex::new(kicks), list: Mutex::new(Vec::new()), process: Identity::current() }
    }
}

/// What an ioeventfd writes, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) bar: usize,
    pub(super) offset: u64,
    pub(super) width: Width,
    pub(super) value: u64,
}
