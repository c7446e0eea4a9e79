//! The operations of a fuzzed sequence. Each object is in a numbered slot, so that leaving out one operation (as
//! shrinking does) changes the meaning of no other. An operation whose slot is empty does nothing.

use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{OnDisabled, Strategy};

pub(crate) use crate::support::matrix::Memory;

pub(crate) const REGIONS: usize = 3;
pub(crate) const MAPPINGS: usize = 5;
pub(crate) const PINS: usize = 3;
pub(crate) const GROUPS: usize = 2;
/// The largest region. It has an aligned huge page wherever it begins.
pub(crate) const MOST_PAGES: usize = 1024;

/// A place in a region or mapping: near the start of one of its pages, or anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Near { page: usize, byte: isize },
    Far(usize),
}

impl Place {
    pub(crate) fn offset(self, page_size: usize) -> usize {
        match self {
            Place::Near { page, byte } => (page * page_size).wrapping_add_signed(byte),
            Place::Far(offset) => offset,
        }
    }
}

/// How long a change of state may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Wait,
    Try,
    Timeout,
}

/// The way in which one access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Accessor,
    Try,
    Register,
    With(FaultFlags),
    /// By raw pointer.
    Raw,
}

/// A read-modify-write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Modify {
    Swap,
    Add,
    Or,
    And,
    Xor,
    /// Compares with this value.
    Exchange(u64),
}

/// A system call with addresses of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// process_vm_readv(2) out of it.
    Vm,
    /// pwrite(2) with it as the source.
    Write,
    /// pread(2) into it, of bytes of this value.
    Read(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Disable,
    Enable,
    Reset,
}

/// How a region is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Build {
    pub(crate) strategy: Strategy,
    pub(crate) memory: Memory,
    pub(crate) pages: usize,
    pub(crate) disabled: bool,
    pub(crate) own_monitor: bool,
    /// Pages that a fault maps. `None`: the crate's default.
    pub(crate) around: Option<usize>,
    pub(crate) trim: bool,
}

/// How it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) offset: Place,
    /// `None`: up to the end.
    pub(crate) len: Option<Place>,
    pub(crate) read_only: bool,
    pub(crate) policy: OnDisabled,
    pub(crate) accessors_only: bool,
}

/// The properties of a faulting caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Faulter {
    pub(crate) flags: FaultFlags,
    pub(crate) policy: OnDisabled,
    pub(crate) cancelled: bool,
}

/// `region`, `mapping`, `pin` and `group` are slots; `width` is 1, 2, 4 or 8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Region {
        region: usize,
        build: Build,
    },
    DropRegion {
        region: usize,
    },
    Map {
        mapping: usize,
        region: usize,
        how: View,
    },
    Unmap {
        mapping: usize,
    },
    Disable {
        region: usize,
        how: How,
    },
    Enable {
        region: usize,
        how: How,
    },
    /// Its callback fills the page at `at` with `byte`.
    Reset {
        region: usize,
        how: How,
        at: Place,
        byte: u8,
    },
    Load {
        mapping: usize,
        via: Via,
        width: usize,
        at: Place,
    },
    Store {
        mapping: usize,
        via: Via,
        width: usize,
        at: Place,
        value: u64,
    },
    Modify {
        mapping: usize,
        modify: Modify,
        width: usize,
        at: Place,
        value: u64,
    },
    CopyOut {
        mapping: usize,
        at: Place,
        len: usize,
    },
    CopyIn {
        mapping: usize,
        at: Place,
        len: usize,
        byte: u8,
    },
    Fill {
        mapping: usize,
        at: Place,
        len: usize,
        byte: u8,
    },
    Call {
        mapping: usize,
        call: Call,
        at: Place,
        len: usize,
    },
    /// The application drops the page-table entries itself.
    Shed {
        mapping: usize,
    },
    /// Changes the rights of a part by `Mapping::protect`.
    Protect {
        mapping: usize,
        pages: Pages,
        rights: Rights,
    },
    /// The application changes a part by itself, without the crate's knowledge.
    Rough {
        mapping: usize,
        pages: Pages,
        what: Rough,
    },
    /// Descriptors of the crate are closed, or other files take their numbers.
    Lose {
        what: Lost,
        how: Loss,
    },
    /// A forked child uses what it has inherited, drops it, and makes regions of its own.
    Fork,
    /// From now on a resource is scarce.
    Limit(Limit),
    /// Ends the limit.
    Unlimit,
    OwnerRead {
        region: usize,
        at: Place,
        len: usize,
    },
    OwnerFill {
        region: usize,
        at: Place,
        len: usize,
        byte: u8,
    },
    /// `polite`: its holder drops it when told of a revocation.
    Pin {
        pin: usize,
        region: usize,
        from: Place,
        to: Place,
        flags: FaultFlags,
        polite: bool,
    },
    Unpin {
        pin: usize,
    },
    /// A guard that lives until its `Unguard`, or the end.
    Guard {
        mapping: usize,
    },
    Unguard,
    /// A group of the regions whose bits are set.
    Group {
        group: usize,
        members: usize,
    },
    All {
        group: usize,
        verb: Verb,
    },
    FaultRegion {
        region: usize,
        at: Place,
        who: Faulter,
    },
    FaultMapping {
        mapping: usize,
        at: Place,
        who: Faulter,
    },
    /// A thread that makes an access which has to wait until the region is enabled, or gone.
    Wait {
        mapping: usize,
        what: Waiter,
        at: Place,
    },
}

/// Pages of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl Op {
    /// True if it changes the process, and so needs one of its own.
    pub(crate) fn is_rude(&self) -> bool {
        match self {
            Op::Rough { what, .. } => matches!(what, Rough::Hole | Rough::Fill),
            Op::Lose { .. } | Op::Fork | Op::Limit(_) | Op::Unlimit => true,
            _ => false,
        }
    }
}

impl Pages {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }
}

/// A change that an application makes to a part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rough {
    Lock,
    Unlock,
    /// mbind(2).
    Bind,
    Advise(Advice),
    /// mprotect(2).
    Protect(Rights),
    /// munmap(2).
    Hole,
    /// Memory of the application's own, in the holes that it has made.
    Fill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    DontNeed,
    WillNeed,
    DontDump,
    Random,
    Cold,
    PageOut,
    /// MADV_HUGEPAGE, then MADV_COLLAPSE.
    Collapse,
    Populate,
}

/// Descriptors of the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Userfaultfds,
    /// The empty file of covers.
    Empty,
    Ones,
    /// The regions' files.
    Files,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    Close,
    /// dup2(2) of /dev/null over it.
    Null,
    /// The same with a directory.
    Directory,
    /// The same with a file that has content.
    Memory,
}

/// A resource, and how much of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Descriptors(u8),
    /// Pages of address space.
    Space(u16),
    /// Mappings.
    Mappings(u8),
}

/// Rights to a page of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rights {
    Nothing,
    Loads,
    All,
}

/// The access that a waiting thread makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    Load,
    Store(u64),
    Raw,
}
