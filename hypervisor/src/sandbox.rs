//! What the process of a machine may ask of the kernel, by the kind of its thread.
//!
//! - All threads: nothing that starts programs, looks into other processes, or changes what the process is or where it lives.
//! - Processors, which do what the guest wants first: only what running a guest and its registers takes. No file is opened, no
//!   socket is made, no memory becomes code.
//! - Disks whose files are open and stay so ([`MachineDisk::sandbox`](crate::MachineDisk::sandbox)): that, and reading and
//!   writing these files. Others are under the rules for all threads alone.
//!
//! Whoever breaks a rule ends the process at once: for the guest it is a loss of power.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, apply_filter_all_threads,
};

use crate::Error;
use crate::error::host;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// A processor of the guest.
    Processor,
    /// A disk whose files are open.
    Disk,
}

/// Whether, and how, rules are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Whoever breaks a rule ends the process.
    #[default]
    On,
    /// Whoever breaks a rule is in the kernel's log (`auditd`, `dmesg`), and goes on: to find out what is missing.
    Log,
    /// There are no rules.
    Off,
}

/// What no thread of a machine asks for.
const NEVER: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_open_by_handle_at,
];

/// What every thread needs: memory, waiting, time, its end, and descriptors that are there.
const ALWAYS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_getrandom,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_membarrier,
    // The console, to whoever is attached to it; it makes no connection.
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What a disk does with its files besides.
const FILES: &[i64] = &[
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_flock,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
];

/// Calls that take the protection of memory, and which of their arguments that is.
const PROTECTING: &[(i64, u8)] = &[(libc::SYS_mmap, 2), (libc::SYS_mprotect, 2)];

impl Sandbox {
    /// Puts the whole process under the rules for all threads; they cannot be taken back.
    ///
    /// # Errors
    /// [`Error::Host`] where the kernel has no seccomp.
    pub fn confine_process(self) -> Result<(), Error> {
        let Some(action) = self.action() else {
            return Ok(());
        };
        let rules = NEVER.iter().map(|call| (*call, Vec::new())).collect();
        let filter = compile(rules, SeccompAction::Allow, action)?;
        apply_filter_all_threads(&filter).map_err(failed)
    }

    /// Puts the calling thread under the rules for its task.
    pub(crate) fn confine_thread(self, task: Task) -> Result<(), Error> {
        let Some(action) = self.action() else {
            return Ok(());
        };
        let files: &[i64] = match task {
            Task::Processor => &[],
            Task::Disk => FILES,
        };
        let allowed = ALWAYS.iter().chain(files).map(|call| (*call, Vec::new()));
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = allowed.collect();
        for (call, argument) in PROTECTING {
            rules.insert(*call, vec![not_executable(*argument)?]);
        }
        let filter = compile(rules, action, SeccompAction::Allow)?;
        apply_filter(&filter).map_err(failed)
    }

    fn action(self) -> Option<SeccompAction> {
        match self {
            Self::On => Some(SeccompAction::KillProcess),
            Self::Log => Some(SeccompAction::Log),
            Self::Off => None,
        }
    }
}

/// Memory that is not to be executed.
fn not_executable(argument: u8) -> Result<SeccompRule, Error> {
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    let is_not = SeccompCmpOp::MaskedEq(executable);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is_not, 0).map_err(failed)?;
    SeccompRule::new(vec![condition]).map_err(failed)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, Error> {
    let filter = SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64).map_err(failed)?;
    BpfProgram::try_from(filter).map_err(failed)
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    host("put a thread under the rules of the sandbox (--sandbox off does without)")(io::Error::other(error))
}
