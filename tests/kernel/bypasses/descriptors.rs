//! Descriptors: which processes can reach the memory by them, and what close-on-exec and seals prevent.

use super::calls::map;
use super::{SECRET, addr};
use crate::support::count::addresses;
use crate::support::matrix::STRATEGIES;
use crate::support::raw::{self, Hit};
use crate::support::{self, child, is_root};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::libc;
use revocable_mmio::{MapOptions, OnDisabled, Region, Strategy};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

/// The descriptor of the memfd with just this name, as any process of the same user finds it. (The vault of a
/// withdrawn region has its window's name with an ending, and the lower number of the two where one was free.)
fn descriptor_of(name: &str) -> PathBuf {
    let found = fs::read_dir("/proc/self/fd").expect("our descriptors").flatten().map(|entry| entry.path());
    let link = format!("/memfd:{name} (deleted)");
    let is_its = |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.as_os_str() == &*link);
    found.into_iter().find(is_its).expect("a region has a descriptor")
}

/// Opens the file again, as /proc allows any process of the same user.
fn open(path: &PathBuf) -> File {
    File::options().read(true).write(true).open(path).expect("it is this user's")
}

#[test]
fn descriptors_are_closed_on_exec_and_the_memfd_is_sealed() {
    support::start();
    let ended = child::alone(|| {
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
                // Opened again through /proc, as any process of this user can, the file neither shrinks nor grows.
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

#[test]
fn who_opens_the_descriptor_has_the_memory_which_is_a_documented_limit_but_cannot_resize_or_execute_it() {
    const LEN: usize = 64 << 10;
    support::start();
    for strategy in STRATEGIES {
        let name = format!("opened-anew-{strategy}");
        let Ok(region) = Region::builder(LEN).name(&*name).strategy(strategy).build() else { continue };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let base = addr(&mapping);
        mapping.write(0, SECRET).expect("enabled");
        region.disable().expect("it revokes");
        let path = descriptor_of(&name);
        let again = open(&path);

        let copy = map(again.as_fd(), LEN, libc::PROT_READ | libc::PROT_WRITE).expect("it is a file");
        if strategy == Strategy::Withdraw {
            assert_eq!(raw::load64(copy), Err(Hit::bus(copy)), "it is empty");
            raw::unmap(copy, LEN).expect("ours");
            // Who may open what this process has open reaches the vault as well (see SECURITY).
            let vault = open(&descriptor_of(&format!("{name}-vault")));
            let copy = map(vault.as_fd(), LEN, libc::PROT_READ).expect("it is a file");
            assert_eq!(raw::load64(copy), Ok(SECRET), "the vault's");
            raw::unmap(copy, LEN).expect("ours");
            continue;
        }
        assert_eq!(raw::load64(copy), Ok(SECRET), "{strategy}: a mapping of their own (see SECURITY)");
        raw::store64(copy, 7).expect("they may write, too");
        assert_eq!(region.owner().read::<u64>(0), Ok(7), "{strategy}");
        again.write_at(&SECRET.to_le_bytes(), 0).expect("by system calls as well");
        assert_eq!(region.owner().read::<u64>(0), Ok(SECRET), "{strategy}");
        assert_eq!(
            raw::load64(base),
            Err(Hit::bus(base)),
            "{strategy}: the region's own mapping is revoked all the same"
        );

        let seals = fcntl(&again, FcntlArg::F_GET_SEALS).expect("a memfd has seals");
        assert_eq!(fcntl(&again, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EPERM), "{strategy}");
        for len in [0, LEN as u64 / 2, 2 * LEN as u64] {
            assert_eq!(again.set_len(len).expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32), "{strategy}");
        }
        // F_SEAL_EXEC, since Linux 6.3.
        if seals & 0x20 != 0 {
            let executable = again.set_permissions(fs::Permissions::from_mode(0o755));
            assert_eq!(executable.expect_err("sealed").raw_os_error(), Some(Errno::EPERM as i32), "{strategy}");
            let started = Command::new(&path).status().expect_err("it is no program");
            assert_eq!(started.kind(), std::io::ErrorKind::PermissionDenied, "{strategy}");
        }
        // A file that can be written can also be punched. The hole reads as zeroes by the descriptor, and is no way
        // into the mapping.
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&again, hole, 0, 4096).expect("writing is not sealed");
        assert_eq!(raw::load64(base), Err(Hit::bus(base)), "{strategy}");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(0), "{strategy}");
        raw::unmap(copy, LEN).expect("ours");
    }
}

/// The file that is mapped at an address now, through /proc/self/map_files.
fn file_at(base: usize) -> std::io::Result<File> {
    let maps = support::read_text("/proc/self/maps");
    let is_there = |line: &&str| addresses(line).is_some_and(|mapped| mapped.contains(&base));
    let line = maps.lines().find(is_there).expect("it is mapped");
    let range = line.split(' ').next().expect("addresses");
    File::options().read(true).open(format!("/proc/self/map_files/{range}"))
}

#[test]
fn map_files_gives_what_is_mapped_there_now_which_is_never_the_memory() {
    support::start();
    require!(is_root(), "/proc/PID/map_files needs CAP_CHECKPOINT_RESTORE", could: false);
    for strategy in STRATEGIES {
        for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes, OnDisabled::Block] {
            let Ok(region) = Region::builder(64 << 10).strategy(strategy).build() else { continue };
            let Ok(mapping) = region.map(MapOptions::new().on_disabled(policy)) else { continue };
            let base = addr(&mapping);
            mapping.write(0, SECRET).expect("enabled");
            let first = |base: usize| {
                let mut word = [0; 8];
                let n = file_at(base).and_then(|file| file.read_at(&mut word, 0)).ok()?;
                (n == 8).then_some(u64::from_le_bytes(word))
            };
            assert_eq!(first(base), Some(SECRET), "{strategy} {policy:?}");
            region.disable().expect("it revokes");
            // An empty file, ones, or private memory, which has no file.
            let ones = (policy == OnDisabled::AllOnes).then_some(u64::MAX);
            assert_eq!(first(base), ones, "{strategy} {policy:?}");
            // The owner's view is always mapped, and map_files shows it (see SECURITY).
            assert_eq!(first(region.owner().as_ptr().expose_provenance()), Some(SECRET), "{strategy} {policy:?}");
            region.enable().expect("it comes back");
            region
                .reset(|_| assert_eq!(first(base), None, "{strategy} {policy:?}: during a reset"))
                .expect("it resets");
            assert_eq!(first(base), Some(SECRET), "{strategy} {policy:?}");
        }
    }
}
