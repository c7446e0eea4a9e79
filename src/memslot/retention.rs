//! What happens to a memslot while its memory is away.

/// What happens to a memslot while its region is disabled; the [module](super) compares the three. During a reset a slot
/// stays in any case, and the guest's accesses wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Retention {
    /// It stays, and all-ones memory stands in it: guest loads read ones, guest stores are lost, with any instruction and
    /// without an exit. Needs a mapping of policy [`OnDisabled::AllOnes`](crate::OnDisabled::AllOnes). The default.
    #[default]
    AllOnes,
    /// It is taken out before the memory is revoked and put back after it is restored: each guest access exits with its
    /// address and data. The hypervisor has to emulate the instruction, and KVM emulates few SSE and no AVX or x87
    /// instructions: for the others [`Exits::internal_error`](super::Exits::internal_error) decides.
    Remove,
    /// It stays, and guest accesses get what the mapping's policy gives: with
    /// [`OnDisabled::Sigbus`](crate::OnDisabled::Sigbus) an exit without an address on most machines.
    Keep,
}
