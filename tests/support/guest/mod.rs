//! A small x86 guest: one vCPU, a page of code, a control page, and a BAR.
//!
//! | guest physical address | what |
//! |---|---|
//! | 0x1000 | code |
//! | 0x8000 | control page: [`Word`]s |
//! | 0x20000 | the BAR, 64 KiB |
#![expect(unsafe_code, reason = "guest memory is reached by address")]
#![allow(dead_code, clippy::allow_attributes, reason = "each test, example and bench uses a part of it")]

pub(crate) mod code;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use memmap2::{MmapOptions, MmapRaw};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Guest physical address and length of the BAR.
pub(crate) const BAR: u64 = 0x2_0000;
pub(crate) const BAR_LEN: usize = 0x1_0000;
/// The word at 0x80 of each page of the BAR is this plus 0x1000 times the page's number.
pub(crate) const PATTERN: u32 = 0x5a00_0000;
const CODE: usize = 0x1000;
const CONTROL: usize = 0x8000;
const RAM: usize = 0x1_0000;

/// A word of the control page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word(usize);

impl Word {
    /// The region's state as the host reports it. Modulo 4: 0 enabled, 2 disabled, odd in between.
    pub(crate) const STATE: Self = Self(0x00);
    pub(crate) const STOP: Self = Self(0x04);
    pub(crate) const ROUNDS: Self = Self(0x08);
    /// Loads that were refused, and loads that reached the memory, both as they should.
    pub(crate) const SEEN_ONES: Self = Self(0x0c);
    pub(crate) const SEEN_GOOD: Self = Self(0x10);
    /// The guest's verdict, 0 for no fault, and the value that it found; see [`verdict`].
    pub(crate) const WRONG: Self = Self(0x14);
    pub(crate) const FOUND: Self = Self(0x18);
    pub(crate) const COUNT: Self = Self(0x20);
    pub(crate) const AT: Self = Self(0x24);
    pub(crate) const VALUE: Self = Self(0x28);
    pub(crate) const STORED: Self = Self(0x2c);
}

/// The meaning of the guest's verdict.
pub(crate) fn verdict(wrong: u32) -> &'static str {
    match wrong {
        0 => "nothing",
        1 => "G2: a store that had returned is lost",
        2 => "G2: a store that failed is there, or enabled memory refused",
        3 => "G1: a load reached revoked memory (its own counter)",
        4 => "G2: content changed over a revocation",
        5 => "G1: a load reached revoked memory (a page's pattern)",
        _ => "an unknown verdict",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Real,
    Protected,
}

/// The memory that other threads access.
#[derive(Clone)]
pub(crate) struct Ram(Arc<MmapRaw>);

impl Ram {
    fn word(&self, word: Word) -> &AtomicU32 {
        let at = self.0.as_mut_ptr().wrapping_add(CONTROL + word.0).cast::<AtomicU32>();
        // SAFETY: inside the mapping and aligned; the guest and the host's threads access it as whole words.
        unsafe { &*at }
    }

    pub(crate) fn get(&self, word: Word) -> u32 {
        self.word(word).load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, word: Word, value: u32) {
        self.word(word).store(value, Ordering::SeqCst);
    }
}

pub(crate) struct Guest {
    pub(crate) vcpu: VcpuFd,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: Ram,
}

/// Opens `/dev/kvm`, or says why it cannot.
pub(crate) fn kvm() -> Result<Kvm, String> {
    Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))
}

/// Opens `/dev/kvm` for a test. Without it the test is skipped, which fails where everything must run.
pub(crate) fn kvm_or_skip() -> Option<Kvm> {
    let kvm = kvm();
    if let Err(why) = &kvm {
        println!("SKIP: {why}");
        let must = std::env::var_os("REVOCABLE_CI").is_some_and(|ci| ci == "1");
        assert!(!must || !std::path::Path::new("/dev/kvm").exists(), "skipped on a machine that could run it: {why}");
    }
    kvm.ok()
}

impl Guest {
    /// A guest that is about to run `code`.
    pub(crate) fn new(kvm: &Kvm, mode: Mode, code: &[u8]) -> Self {
        let vm = kvm.create_vm().expect("a virtual machine");
        let _ = vm.set_tss_address(0xfffb_d000);
        let ram = Ram(Arc::new(MmapOptions::new().len(RAM).map_anon().expect("64 KiB").into()));
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: ram.0.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: `Guest` keeps the mapping as long as the virtual machine, and `Ram` accesses whole words only.
        unsafe { vm.set_user_memory_region(slot) }.expect("64 KiB of guest memory");
        // SAFETY: inside the mapping; the guest does not run yet.
        unsafe { code.as_ptr().copy_to_nonoverlapping(ram.0.as_mut_ptr().wrapping_add(CODE), code.len()) };
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        let mut sregs = vcpu.get_sregs().expect("segments");
        for (segment, base) in
            [(&mut sregs.cs, 0u64), (&mut sregs.ss, 0), (&mut sregs.ds, BAR), (&mut sregs.es, CONTROL as u64)]
        {
            segment.base = base;
            segment.selector = u16::try_from(base >> 4).expect("below 1 MiB");
            if mode == Mode::Protected {
                segment.limit = 0xffff_ffff;
                (segment.g, segment.db, segment.present, segment.s) = (1, 1, 1, 1);
            }
        }
        if mode == Mode::Protected {
            sregs.cr0 |= 1;
            sregs.cs.type_ = 11;
            (sregs.ss.type_, sregs.ds.type_, sregs.es.type_) = (3, 3, 3);
            (sregs.cs.selector, sregs.ss.selector, sregs.ds.selector, sregs.es.selector) = (8, 16, 24, 32);
        }
        vcpu.set_sregs(&sregs).expect("segments");
        let guest = Self { vcpu, vm: Arc::new(vm), ram };
        guest.restart();
        guest
    }

    /// Gives a guest in protected mode SSE, AVX and x87, as far as the machine has them. False without AVX.
    pub(crate) fn with_vectors(&mut self, kvm: &Kvm) -> bool {
        let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).expect("what KVM supports");
        let features = cpuid.as_slice().iter().find(|entry| entry.function == 1).map_or(0, |entry| entry.ecx);
        let avx = features & (1 << 28) != 0 && features & (1 << 26) != 0;
        self.vcpu.set_cpuid2(&cpuid).expect("KVM supports it");
        let mut sregs = self.vcpu.get_sregs().expect("segments");
        sregs.cr0 = (sregs.cr0 | 1 << 1) & !(1 << 2 | 1 << 3);
        sregs.cr4 |= 1 << 9 | 1 << 10 | if avx { 1 << 18 } else { 0 };
        self.vcpu.set_sregs(&sregs).expect("control registers");
        if avx {
            let mut xcrs = self.vcpu.get_xcrs().expect("extended control registers");
            xcrs.nr_xcrs = 1;
            xcrs.xcrs[0].xcr = 0;
            xcrs.xcrs[0].value = 7;
            self.vcpu.set_xcrs(&xcrs).expect("x87, SSE and AVX");
        }
        avx
    }

    /// Makes the guest execute from its first instruction again.
    pub(crate) fn restart(&self) {
        let regs = kvm_regs { rip: CODE as u64, rflags: 2, ..Default::default() };
        self.vcpu.set_regs(&regs).expect("registers");
    }
}
