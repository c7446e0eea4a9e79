//! Section f: a second process. Under Withdraw it maps the BAR by a descriptor and is revoked like the first. What the
//! recorded one did by its own descriptor of the device, it asks the first for here, as the client of a vfio-user server does.

use crate::devices::{BAR2, command, ivshmem, loaded, map, off, on, rc, show};
use crate::suite::Suite;
use crate::support::forking::{self, Started};
use crate::support::raw::{self, Hit, store};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::unistd::{pipe, read, write};
use revocable_mmio::ShareAccess;
use std::os::fd::OwnedFd;

/// A process that has mapped the BAR, and loads from it when it is asked to.
struct Second {
    asks: OwnedFd,
    told: OwnedFd,
    child: Started,
}

impl Second {
    fn start(bar: &OwnedFd) -> Self {
        let ((asked, asks), (told, tells)) = (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let len = std::num::NonZeroUsize::new(4096).expect("not zero");
        // The child maps, loads, reads and writes, and allocates nothing.
        let child = forking::start(|| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let at = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, bar, 0) };
            let Ok(at) = at else { return 1 };
            let base = at.as_ptr().cast::<u8>();
            let mut byte = [0];
            while read(&asked, &mut byte) == Ok(1) && byte != *b"." {
                let result = raw::load(base, 8);
                let mut message = [0; 24];
                message[..8].copy_from_slice(&(base.expose_provenance() as u64).to_le_bytes());
                let (kind, value) =
                    result.map_or_else(|met| (met.signal as u8 * 16 + met.code as u8, met.addr as u64), |v| (0, v));
                message[8] = kind;
                message[16..].copy_from_slice(&value.to_le_bytes());
                if write(&tells, &message) != Ok(24) {
                    return 2;
                }
            }
            0
        });
        Self { asks, told, child }
    }

    fn load(&self) -> String {
        assert_eq!(write(&self.asks, b"l"), Ok(1));
        let mut message = [0; 24];
        assert_eq!(read(&self.told, &mut message), Ok(24), "it says what it got");
        let word = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        let base = std::ptr::with_exposed_provenance(word(0) as usize);
        let (kind, value) = (message[8], word(16));
        match kind {
            0 => loaded(Ok(value), base),
            kind => show(Hit { signal: i32::from(kind / 16), code: i32::from(kind % 16), addr: value as usize }, base),
        }
    }

    fn end(self) {
        assert_eq!(write(&self.asks, b"."), Ok(1));
        assert_eq!(self.child.wait(), 0);
    }
}

pub(crate) fn second_process(s: &mut Suite) {
    s.section("f");
    let device = ivshmem(s);
    let first = map(&device, BAR2);
    let base = first.as_ptr();
    store(base, 8, 0xf00d).expect("enabled");
    let region = device.region(BAR2).expect("there is one");
    let bar = region.share(ShareAccess::ReadOnly).expect("a descriptor");
    let second = Second::start(&bar);
    s.row("second process (fd by SCM_RIGHTS): mmap, load", second.load());
    off(&device);
    s.row("first: own load after disabling", loaded(raw::load(base, 8), base));
    s.row("first process disabled: second's load", second.load());
    s.row("second: COMMAND reads", command(&device));
    s.row("second: pread BAR", rc(device.read(BAR2, 0, &mut [0; 8][..])));
    s.row("second enables: load", format!("{} {}", on(&device), second.load()));
    s.row("first: load after second's enable", loaded(raw::load(base, 8), base));
    drop(first);
    s.row("first process has exited its mapping and closed its fds; second's load", second.load());
    off(&device);
    s.row("second disables: load", second.load());
    on(&device);
    s.row("second enables: load (2)", second.load());
    second.end();
}
