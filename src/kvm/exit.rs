//! KVM's exits.

use crate::memslot::{Answer, ExitError, Exits, Memslots, WhenDisabled};
use crate::sync::wait::CancelToken;
#[cfg(target_arch = "x86_64")]
use crate::sys::SysError;
use kvm_bindings::KVM_EXIT_MMIO;
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::libc;

/// What to do after an exit.
#[derive(Debug)]
#[must_use]
pub enum Handled<'vcpu> {
    /// Enter the vCPU again: the access was made, was answered, or will be executed again.
    Reenter,
    /// The token was cancelled while the access waited; the access is still open. Call
    /// [`ExitHandler::again`] before entering the vCPU, else its load reads all-ones or its store is lost.
    Cancelled,
    /// As [`Reenter`](Self::Reenter), once [`ExitHandler::again`] has been called: the instruction will be executed again,
    /// and KVM has an exception for the guest that must be dropped.
    Again,
    /// The exit is not about a revocable memslot: the VMM handles it.
    Other(Result<VcpuExit<'vcpu>, kvm_ioctls::Error>),
}

/// Handles the exits of one vCPU.
///
/// ```no_run
/// use kvm_ioctls::{VcpuExit, VcpuFd};
/// use revocable_mmio::CancelToken;
/// use revocable_mmio::kvm::{ExitError, ExitHandler, Handled, Memslots, WhenDisabled};
///
/// /// Runs a vCPU until it is stopped.
/// fn run(slots: Memslots, mut vcpu: VcpuFd, mut kick: CancelToken) -> Result<(), ExitError> {
///     let mut exits = ExitHandler::new(slots, WhenDisabled::Wait, kick);
///     let mut open = false;
///     loop {
///         let handled = if open { exits.again(&mut vcpu)? } else { exits.handle(vcpu.run())? };
///         open = match handled {
///             Handled::Reenter => false,
///             Handled::Again => true, // `again`, before the vCPU is entered
///             Handled::Cancelled => {
///                 println!("kicked while its access waited");
///                 kick = CancelToken::new(); // and known to the thread that kicks
///                 exits.set_cancel(kick);
///                 true
///             }
///             Handled::Other(Ok(VcpuExit::Shutdown)) => return Ok(()),
///             Handled::Other(exit) => {
///                 println!("the VMM's own: {exit:?}");
///                 false
///             }
///         };
///     }
/// }
/// ```
#[derive(Debug)]
pub struct ExitHandler {
    exits: Exits,
    open: Open,
}

/// What is left to do before the vCPU is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    /// An MMIO exit has not been answered yet.
    Mmio,
    /// An instruction that KVM did not emulate has not been answered yet.
    Instruction,
    /// It has. KVM has queued #UD for the guest (`handle_emulation_failure`), which is not to see it.
    Exception,
}

impl ExitHandler {
    /// A handler for one vCPU; `cancel` cancels its waits.
    pub fn new(slots: Memslots, when: WhenDisabled, cancel: CancelToken) -> Self {
        Self { exits: Exits::new(slots, when, cancel), open: Open::Nothing }
    }

    /// Sets a new token for the waits from now on: a cancelled token stays cancelled.
    pub fn set_cancel(&mut self, cancel: CancelToken) {
        self.exits.set_cancel(cancel);
    }

    /// Handles an exit of `KVM_RUN`.
    ///
    /// # Blocking
    /// Waits while the region is busy, and while it is disabled under [`WhenDisabled::Wait`]; cancelling the token ends the
    /// wait.
    ///
    /// # Errors
    /// The access cannot be answered: see [`ExitError`]. It is still open, as after [`Handled::Cancelled`].
    pub fn handle<'vcpu>(
        &mut self,
        exit: Result<VcpuExit<'vcpu>, kvm_ioctls::Error>,
    ) -> Result<Handled<'vcpu>, ExitError> {
        let mut exit = exit;
        let answer = match &mut exit {
            Ok(VcpuExit::MmioRead(gpa, data)) => self.exits.mmio_read(*gpa, data),
            Ok(VcpuExit::MmioWrite(gpa, data)) => self.exits.mmio_write(*gpa, data),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => self.exits.memory_fault(*gpa),
            Ok(VcpuExit::InternalError) => self.exits.internal_error(),
            Err(e) if e.errno() == libc::EFAULT => self.exits.efault(),
            _ => {
                self.exits.other();
                return Ok(Handled::Other(exit));
            }
        };
        let instruction = matches!(exit, Ok(VcpuExit::InternalError));
        self.open = match (&exit, &answer) {
            (Ok(VcpuExit::InternalError), Ok(Answer::Reenter)) => Open::Exception,
            (_, Ok(Answer::Reenter | Answer::NotOurs)) => Open::Nothing,
            (Ok(VcpuExit::InternalError), _) => Open::Instruction,
            (Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)), _) => Open::Mmio,
            // The access was not executed: it exits again, if need be.
            _ => Open::Nothing,
        };
        Ok(match answer? {
            Answer::Reenter if instruction => Handled::Again,
            Answer::Reenter => Handled::Reenter,
            Answer::Cancelled => Handled::Cancelled,
            Answer::NotOurs => Handled::Other(exit),
        })
    }

    /// Tries an access again that was [`Cancelled`](Handled::Cancelled) or got an error, before the vCPU is entered again;
    /// also after [`Handled::Again`], where it never returns that again.
    ///
    /// # Blocking
    /// As [`handle`](Self::handle).
    ///
    /// # Errors
    /// As [`handle`](Self::handle).
    pub fn again<'vcpu>(&mut self, vcpu: &'vcpu mut VcpuFd) -> Result<Handled<'vcpu>, ExitError> {
        match self.open {
            Open::Nothing => return Ok(Handled::Reenter),
            Open::Mmio => {}
            Open::Instruction => match self.exits.internal_error()? {
                Answer::Reenter => return self.drop_exception(vcpu),
                Answer::Cancelled => return Ok(Handled::Cancelled),
                Answer::NotOurs => return Ok(Handled::Other(Ok(VcpuExit::InternalError))),
            },
            Open::Exception => return self.drop_exception(vcpu),
        }
        let run = vcpu.get_kvm_run();
        if run.exit_reason != KVM_EXIT_MMIO {
            self.open = Open::Nothing;
            return Ok(Handled::Reenter);
        }
        #[expect(unsafe_code, reason = "UNSAFETY: a member of KVM's union")]
        // SAFETY: KVM wrote this member at the exit that `exit_reason` names, and writes no other before the next entry,
        // which needs the `&mut VcpuFd` that is held here. Every value of its fields is valid.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        let len = usize::try_from(mmio.len).unwrap_or(usize::MAX).min(mmio.data.len());
        let (gpa, data) = (mmio.phys_addr, &mut mmio.data[..len]);
        self.handle(Ok(if mmio.is_write != 0 { VcpuExit::MmioWrite(gpa, data) } else { VcpuExit::MmioRead(gpa, data) }))
    }

    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "KVM queues no exception there"))]
    fn drop_exception<'vcpu>(&mut self, vcpu: &VcpuFd) -> Result<Handled<'vcpu>, ExitError> {
        #[cfg(target_arch = "x86_64")]
        {
            const INVALID_OPCODE: u8 = 6;
            let failed = |e: kvm_ioctls::Error| ExitError::Vcpu {
                source: SysError::new("KVM_SET_VCPU_EVENTS", nix::errno::Errno::from_raw(e.errno())),
            };
            let mut events = vcpu.get_vcpu_events().map_err(failed)?;
            if events.exception.nr == INVALID_OPCODE {
                (events.exception.injected, events.exception.pending) = (0, 0);
                vcpu.set_vcpu_events(&events).map_err(failed)?;
            }
        }
        self.open = Open::Nothing;
        Ok(Handled::Reenter)
    }
}
