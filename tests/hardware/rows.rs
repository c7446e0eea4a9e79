//! Recorded rows (`tests/vfio/rows.tsv`) about the kernel's own maps of a BAR, replayed on the driver, through a mapping of
//! the crate's. `tests/vfio/cannot.tsv` says of most that memory of another kind cannot show it; in the others it differs.
//!
//! UNSAFETY: system calls on a mapping that nothing else uses meanwhile.
#![expect(unsafe_code, reason = "system calls on a mapping of the crate's")]

use crate::rig::{BAR, By, LEN, MEMORY, Opened, faults, rig};
use crate::support::{addr, raw, release};
use linux_raw_sys::ioctl as nr;
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::pci::DmaAccess;
use revocable_mmio::vfio::VfioDevice;
use revocable_mmio::{AccessError, MapOptions, Mapping, Prot};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd};

/// What cannot.tsv says of a row that is replayed here.
const REPLAYED: &str = "tests/hardware replays it on the driver";

struct Rows {
    outcomes: BTreeMap<(&'static str, &'static str), &'static str>,
    tried: BTreeSet<(&'static str, &'static str)>,
}

impl Rows {
    fn row(&mut self, section: &'static str, step: &'static str, outcome: impl Into<String>) {
        let recorded = self.outcomes.get(&(section, step)).unwrap_or_else(|| panic!("no row {section} {step:?}"));
        assert_eq!(outcome.into(), *recorded, "{section} {step}");
        assert!(self.tried.insert((section, step)), "twice: {section} {step}");
    }
}

fn lines(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| line.split('\t').collect())
}

fn said(rc: i64) -> String {
    if rc < 0 { format!("-1 {:?}", Errno::last()) } else { rc.to_string() }
}

fn at(addr: usize) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(addr)
}

fn advise(mapping: &Mapping, advice: i32) -> String {
    // SAFETY: by this module's UNSAFETY. None of these advices loses the content of a BAR.
    said(unsafe { libc::madvise(at(addr(mapping)), 4096, advice) }.into())
}

fn remap(from: usize, old: usize, new: usize, flags: i32, to: usize) -> Result<usize, String> {
    // SAFETY: by this module's UNSAFETY; a target is a reservation of the test's own.
    let moved = unsafe { libc::mremap(at(from), old, new, flags, at(to)) };
    if moved == libc::MAP_FAILED { Err(said(-1)) } else { Ok(moved.expose_provenance()) }
}

fn load(addr: usize) -> String {
    match raw::load(at(addr).cast(), 8) {
        Ok(value) => format!("{value:#x}"),
        Err(hit) if hit == raw::Hit::bus(addr) => "SIGBUS BUS_ADRERR(2) si_addr=base+0x0".to_owned(),
        Err(hit) => format!("{hit:?}"),
    }
}

/// UFFDIO_REGISTER of the mapping by a userfaultfd of its own.
fn register(mapping: &Mapping, mode: u64) -> String {
    // SAFETY: takes no address.
    let uffd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let uffd = i32::try_from(uffd).expect("a descriptor");
    let mut api = [0xaa_u64, 0, 0];
    // SAFETY: struct uffdio_api.
    let rc = unsafe { libc::ioctl(uffd, nr::UFFDIO_API.into(), api.as_mut_ptr()) };
    assert_eq!(rc, 0, "UFFDIO_API");
    let mut range = [addr(mapping) as u64, 4096, mode, 0];
    // SAFETY: struct uffdio_register.
    let registered = said(unsafe { libc::ioctl(uffd, nr::UFFDIO_REGISTER.into(), range.as_mut_ptr()) }.into());
    // SAFETY: this function's own descriptor.
    unsafe { libc::close(uffd) };
    registered
}

fn maps(rows: &mut Rows, opened: &Opened, mapping: &Mapping) {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    mapping.write(0, VALUE).expect("on");
    let base = addr(mapping);
    let dont_fork = advise(mapping, libc::MADV_DONTFORK);
    rows.row("a", "MADV_DONTFORK / MADV_DOFORK", format!("{dont_fork} / {}", advise(mapping, libc::MADV_DOFORK)));
    rows.row("a", "MADV_DONTNEED", advise(mapping, libc::MADV_DONTNEED));
    let before = faults();
    mapping.read::<u8>(0).expect("on");
    rows.row("a", "MADV_DONTNEED › faults on the next load", (faults() - before).to_string());
    let kin = [libc::MADV_FREE, libc::MADV_COLD, libc::MADV_PAGEOUT, libc::MADV_REMOVE].map(|kin| advise(mapping, kin));
    rows.row("a", "MADV_FREE / MADV_COLD / MADV_PAGEOUT / MADV_REMOVE", kin.join(" / "));
    rows.row("a", "MADV_HUGEPAGE", advise(mapping, libc::MADV_HUGEPAGE));
    let mut resident = 0xff_u8;
    // SAFETY: one page, one byte.
    rows.row("a", "enabled: mincore", said(unsafe { libc::mincore(at(base), 4096, &raw mut resident) }.into()));
    rows.row("a", "enabled: mincore vec", resident.to_string());
    rows.row("a", "userfaultfd MISSING register of the BAR mapping", register(mapping, 1));
    rows.row("a", "userfaultfd WP register of the BAR mapping", register(mapping, 2));
    // The argument is read from the BAR: its first word, the length, is too short.
    mapping.write(0x40, 0_u64).expect("on");
    // SAFETY: the kernel copies from and to the BAR, which is the test's.
    let rc =
        unsafe { libc::ioctl(opened.device.as_fd().as_raw_fd(), nr::VFIO_DEVICE_GET_REGION_INFO.into(), base + 0x40) };
    rows.row("a", "enabled: ioctl with its argument in the BAR (GET_REGION_INFO)", said(rc.into()));

    const MOVE: i32 = libc::MREMAP_MAYMOVE;
    let dont_unmap = remap(base, LEN, LEN, MOVE | libc::MREMAP_DONTUNMAP, 0);
    rows.row("d", "mremap MREMAP_DONTUNMAP", dont_unmap.expect_err("refused"));
    rows.row("d", "mremap grow", remap(base, LEN, LEN + 4096, MOVE, 0).expect_err("refused"));
    rows.row("d", "mremap old_len 0 (duplicate)", remap(base, 0, LEN, MOVE, 0).expect_err("refused"));
    let other = opened.device.as_fd().try_clone_to_owned().expect("a descriptor");
    // SAFETY: the driver gives a second mapping of the BAR nowhere but where nothing is.
    let second = unsafe {
        let offset = revocable_mmio::vfio::RegionInfo::ask(other.as_fd(), BAR).expect("a BAR").offset();
        let offset = i64::try_from(offset).expect("a place in the file");
        libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ, libc::MAP_SHARED, other.as_raw_fd(), offset)
    };
    assert_ne!(second, libc::MAP_FAILED, "a plain mapping beside the crate's");
    drop(other);
    assert_eq!(load(second.expose_provenance()), format!("{VALUE:#x}"));
    // SAFETY: just mapped, and used no more.
    unsafe { libc::munmap(second, LEN) };
    assert_eq!(mapping.read::<u64>(0), Ok(VALUE), "nothing of this has touched the memory");
}

/// A second descriptor of the device, by the group.
fn again(rows: &mut Rows, again: VfioDevice, opened: &Opened, mapping: &Mapping) {
    let base = addr(mapping);
    let outcome = format!("ok; mapping load {}", load(base));
    rows.row("a", "open the device again while only the mapping holds it", outcome);
    let off = "open the device again while only the mapping holds it › memory off through the second device fd: load \
               through the old mapping";
    let command = opened.command();
    again.write_config(4, &(command & !2).to_le_bytes()).expect("configuration space");
    rows.row("a", off, load(base));
    assert_eq!(mapping.read::<u64>(0), Err(AccessError::Disabled { offset: 0 }));
    again.write_config(4, &command.to_le_bytes()).expect("configuration space");
    rows.row("a", "open the device again while only the mapping holds it › on again", format!("ok {}", load(base)));
}

#[test]
fn what_the_kernel_does_with_its_maps_of_a_bar_is_as_recorded_under_a_mapping_of_the_crates() {
    let Some(rig) = rig() else { return };
    require!(release() > (6, 1), "the rows are those of Linux 6.12", could: false);
    let rows = lines(include_str!("../vfio/rows.tsv")).map(|row| ((row[0], row[1]), row[2]));
    let mut rows = Rows { outcomes: rows.collect(), tried: BTreeSet::new() };
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    maps(&mut rows, &opened, &mapping);

    // A part without rights.
    mapping.protect(0x1000..0x2000, Prot::None).expect("rights");
    let iommu = rig.iommu();
    let refused = iommu.map_at(0x10_0000, addr(&mapping) + 0x1000, 4096, DmaAccess::Read);
    rows.row("m", "PROT_NONE mapping: MAP_DMA", format!("-1 {:?}", refused.expect_err("refused")));
    mapping.protect(0x1000..0x2000, Prot::ReadWrite).expect("rights");

    let marked = lines(include_str!("../vfio/cannot.tsv")).filter(|row| row[2].ends_with(REPLAYED));
    let mut marked: BTreeSet<_> = marked.map(|row| (row[0], row[1])).collect();
    match &opened.by {
        By::Group(group) => {
            again(&mut rows, VfioDevice::new(group.descriptor(MEMORY)).expect("opened again"), &opened, &mapping);
            // The mapping, and the region's descriptor, keep the device when its group and container are closed.
            let base = addr(&mapping);
            drop(iommu);
            drop(opened);
            rows.row("a", "close(group fd): load", format!("ok {}", load(base)));
            drop(rig);
            rows.row("a", "close(container fd): load", format!("ok {}", load(base)));
        }
        By::Iommufd(_) => {
            // There is one descriptor of a device at a time (`vfio_df_open`), and neither group nor container.
            marked.retain(|(_, step)| !step.starts_with("open the device again") && !step.starts_with("close("));
            let (iommufd, _) = rig.iommufd().expect("it opened the device");
            let was = load(addr(&mapping));
            assert_eq!(iommufd.try_bind(MEMORY).map(drop), Err(Errno::EINVAL));
            drop(iommu);
            drop(opened);
            drop(rig);
            assert_eq!(load(addr(&mapping)), was, "the mapping keeps the device, and with it the iommufd");
        }
    }
    assert_eq!(marked.difference(&rows.tried).collect::<Vec<_>>(), [] as [&(&str, &str); 0], "said to be replayed");
    println!("{} recorded rows replayed on the driver", rows.tried.len());
}
