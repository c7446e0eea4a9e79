//! Changes that an application makes to the crate's mappings and descriptors, and limits of a process.
//!
//! UNSAFETY: system calls on addresses and descriptors that belong to the crate, without its knowledge. Changes to the
//! whole process are made only in processes that run one sequence.
#![expect(unsafe_code, reason = "does to the crate's memory and descriptors what only other code would do")]

use super::model::FOREIGN;
use super::op::{Advice, Limit, Loss, Lost, Rights, Rough};
use crate::support::{raw, read_text};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

const MADV_COLLAPSE: i32 = 25;

fn at(addr: usize) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(addr)
}

/// Changes `len` bytes at `addr`, which `page` divides. The call may fail.
pub(super) fn treat(what: Rough, addr: usize, len: usize, page: usize) {
    match what {
        Rough::Lock => drop(raw::lock(addr, len)),
        // SAFETY: changes no content.
        Rough::Unlock => drop(Errno::result(unsafe { libc::munlock(at(addr), len) })),
        Rough::Bind => bind(addr, len),
        Rough::Advise(advice) => {
            let advices: &[i32] = match advice {
                Advice::DontNeed => &[libc::MADV_DONTNEED],
                Advice::WillNeed => &[libc::MADV_WILLNEED],
                Advice::DontDump => &[libc::MADV_DODUMP, libc::MADV_DONTDUMP],
                Advice::Random => &[libc::MADV_RANDOM],
                Advice::Cold => &[libc::MADV_COLD],
                Advice::PageOut => &[libc::MADV_PAGEOUT],
                Advice::Collapse => &[libc::MADV_HUGEPAGE, MADV_COLLAPSE],
                Advice::Populate => &[libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE],
            };
            for advice in advices {
                let _ = raw::advise(addr, len, *advice);
            }
        }
        // Page by page, because mprotect stops at a hole.
        Rough::Protect(rights) => {
            for addr in (addr..addr + len).step_by(page) {
                let _ = raw::protect(addr, page, bits(rights));
            }
        }
        Rough::Hole => {
            // A thread that is still starting maps a few pages, which must not come into the hole.
            await_started_threads();
            raw::unmap(addr, len).expect("a part can be unmapped");
        }
        Rough::Fill => {}
    }
}

fn bits(rights: Rights) -> i32 {
    match rights {
        Rights::Nothing => libc::PROT_NONE,
        Rights::Loads => libc::PROT_READ,
        Rights::All => libc::PROT_READ | libc::PROT_WRITE,
    }
}

fn bind(addr: usize, len: usize) {
    const MPOL_BIND: libc::c_int = 2;
    let first: libc::c_ulong = 1;
    // SAFETY: a policy for the part: the first node, which every machine has. Changes no content.
    unsafe { libc::syscall(libc::SYS_mbind, at(addr), len, MPOL_BIND, &raw const first, 64, 0) };
}

/// Maps memory of the application in a hole, with these rights.
pub(super) fn fill(addr: usize, len: usize, rights: Rights) {
    let file = memory(len);
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: replaces nothing.
    let got = unsafe { libc::mmap(at(addr), len, bits(rights), flags, file.as_raw_fd(), 0) };
    assert_eq!(got, at(addr), "something else is in the hole at {addr:#x}, or nothing can be there: {}", Errno::last());
}

/// True if a hole has been filled. Only a reservation of the crate may have filled it.
pub(super) fn is_taken(addr: usize, page: usize) -> bool {
    let mut resident = [0u8; 512];
    // SAFETY: one page, of 2 MiB at most, with a byte of output for each base page. Changes nothing else.
    let taken = unsafe { libc::mincore(at(addr), page, resident.as_mut_ptr()) } == 0;
    assert!(!taken || raw::load8(addr).is_err(), "something is in the hole at {addr:#x}");
    taken
}

/// A file with the content of the application's memory.
fn memory(len: usize) -> OwnedFd {
    let file = File::from(raw::scratch());
    file.write_all_at(&vec![FOREIGN; len], 0).expect("it takes them");
    file.into()
}

/// Closes or replaces descriptors of the crate. In the latter case their numbers become those of other files.
pub(super) fn lose(what: Lost, how: Loss) {
    let other: Option<OwnedFd> = match how {
        Loss::Close => None,
        Loss::Null => Some(File::open("/dev/null").expect("there is one").into()),
        Loss::Directory => Some(File::open("/").expect("there is one").into()),
        Loss::Memory => Some(memory(1 << 16)),
    };
    for (number, file) in descriptors() {
        let starts = |names: &[&str]| names.iter().any(|name| file.starts_with(name));
        let temporary = format!("{}/revocable-", std::env::temp_dir().display());
        let meant = match what {
            Lost::Userfaultfds => starts(&["anon_inode:[userfaultfd]"]),
            Lost::Empty => starts(&["/memfd:revocable-empty"]),
            Lost::Ones => starts(&["/memfd:revocable-ones"]),
            Lost::Files => starts(&["/memfd:matrix", "/dev/shm/revocable-", &temporary]),
        };
        if !meant {
            continue;
        }
        // SAFETY: system calls on numbers, one of which is the crate's on purpose.
        let done = match &other {
            // SAFETY: two numbers; the second is the crate's.
            Some(other) => unsafe { libc::dup2(other.as_raw_fd(), number) },
            // SAFETY: as above.
            None => unsafe { libc::close(number) },
        };
        assert!(done >= 0, "{what:?} {how:?}: {}", Errno::last());
    }
}

/// All open descriptors, and their files.
fn descriptors() -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("our descriptors").flatten();
    let number = |entry: &std::fs::DirEntry| entry.file_name().to_str().and_then(|name| name.parse().ok());
    let file = |entry: &std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
    entries.filter_map(|entry| Some((number(&entry)?, file(&entry)?.to_string_lossy().into_owned()))).collect()
}

/// A limit that holds until it is dropped.
pub(super) struct Limited {
    before: Option<(Resource, u64, u64)>,
    _filler: Option<raw::Filler>,
}

impl Limited {
    pub(super) fn new(limit: Limit) -> Self {
        // A thread that is still starting would die without the resource.
        await_started_threads();
        let (resource, value) = match limit {
            Limit::Descriptors(left) => {
                let open: Vec<i32> = descriptors().into_iter().map(|(number, _)| number).collect();
                // The limit is on numbers. (The directory that was read is closed again, so there may be one more.)
                let free = (0..).filter(|number| !open.contains(number)).nth(left.into());
                (Resource::RLIMIT_NOFILE, u64::try_from(free.unwrap_or(0)).unwrap_or(0))
            }
            Limit::Space(left) => {
                ballast();
                let pages = read_text("/proc/self/statm").split(' ').next().and_then(|word| word.parse::<u64>().ok());
                (Resource::RLIMIT_AS, (pages.unwrap_or(0) + u64::from(left)) * crate::support::page_size() as u64)
            }
            Limit::Mappings(left) => {
                ballast();
                let mut filler = raw::fill_the_table_of_mappings();
                filler.leave(left.into());
                return Self { before: None, _filler: Some(filler) };
            }
        };
        let (soft, hard) = getrlimit(resource).expect("there is one");
        setrlimit(resource, value.min(hard), hard).expect("it can be lowered");
        Self { before: Some((resource, soft, hard)), _filler: None }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Some((resource, soft, hard)) = self.before {
            setrlimit(resource, soft, hard).expect("what was allowed is");
        }
    }
}

/// Waits until every other thread of this process sleeps.
fn await_started_threads() {
    let me = nix::unistd::gettid().to_string();
    let sleeps = |task: &std::path::Path| {
        let stat = read_text(task.join("stat"));
        // The thread may have ended meanwhile.
        stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('S'))
    };
    crate::support::eventually("all threads sleep", || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("our threads").flatten().map(|entry| entry.path());
        tasks.filter(|task| !task.ends_with(&me)).all(|task| sleeps(&task))
    });
}

/// Makes the allocator keep some memory, so that the limit does not hit the test itself.
fn ballast() {
    #[cfg(target_env = "gnu")]
    for what in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: a setting of the allocator: it keeps freed memory, and does not use mmap for large blocks.
        unsafe { libc::mallopt(what, 32 << 20) };
    }
    drop((0..64).map(|_| vec![1; 16 << 10]).collect::<Vec<Vec<u8>>>());
}
