//! The descriptors: who has the memory, and what exec and the seals keep from whom.

use crate::support::{self, child};
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::{MapOptions, Region, Strategy};
use std::fs;

#[test]
fn descriptors_are_closed_on_exec_and_the_memfd_is_sealed() {
    support::start();
    let ended = child::alone("descriptors::descriptors_are_closed_on_exec_and_the_memfd_is_sealed", || {
        let region = Region::builder(64 << 10).name("sealed-one").build().expect("it builds");
        let _zap = Region::builder(4096).strategy(Strategy::Zap).build().map(|r| (r.map(MapOptions::new()), r));
        let mapping = region.map(MapOptions::new()).expect("it maps");
        region.disable().expect("it revokes");
        drop(mapping);
        let mut memfds = 0;
        for entry in fs::read_dir("/proc/self/fd").expect("our descriptors").flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            let fd: i32 = entry.file_name().to_string_lossy().parse().expect("a number");
            if target.contains("memfd:") || target.contains("userfaultfd") || target.contains("eventfd") {
                let info = support::read_text(format!("/proc/self/fdinfo/{fd}"));
                let flags =
                    info.lines().find_map(|l| l.strip_prefix("flags:")).expect("it has flags").trim().to_owned();
                let flags = i32::from_str_radix(&flags, 8).expect("octal");
                assert!(flags & libc::O_CLOEXEC != 0, "{target} survives exec");
            }
            if target.contains("sealed-one") {
                memfds += 1;
                // Opened anew through /proc, as anybody of this user can: neither shrinks nor grows.
                let again = fs::File::options().write(true).open(entry.path()).expect("it opens");
                for len in [0, 128 << 10] {
                    assert_eq!(again.set_len(len).expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32));
                }
            }
        }
        assert_eq!(memfds, 1, "the region's own");
    });
    ended.well();
}
