//! How a role ends otherwise than with its run: one error for all roles.

use retouch_credentials::CredentialsError;
use thiserror::Error;

use crate::{device::DeviceError, process::ProcessError, session::SessionError};

/// An error of a crate that this one does not depend on, such as a model's.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a role ended otherwise than with its run.
#[derive(Debug, Error)]
pub enum RoleError {
    /// The coordinator refused or stayed away.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The certificate can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The process can't be set up.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Learners can't meet: there is no port to listen on.
    #[error(transparent)]
    Collective(BoxError),
    /// The address under which other ranks reach this one.
    #[error("advertised host {host:?} cannot be resolved: {reason}")]
    Advertise {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// The device thread failed.
    #[error(transparent)]
    DeviceThread(#[from] DeviceError),
    /// The device is unknown or absent, the role's models can't be loaded onto it, or this build lacks the collective.
    #[error(transparent)]
    Load(BoxError),
}

impl RoleError {
    /// Whether the same process started again would end the same way: a model that can't be loaded, a device
    /// that is not there, a certificate, address, folder or port that can't be used will be no better a second later.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Load(_) => true,
            Self::Credentials(error) => error.is_lasting(),
            Self::Session(error) => error.is_lasting(),
            Self::Process(_)
            | Self::Collective(_)
            | Self::Advertise { .. }
            | Self::DeviceThread(_) => false,
        }
    }

    /// Whether the coordinator does not take this worker.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Session(SessionError::Refused(_)))
    }

    /// Whether no coordinator answered for as long as this worker waits for one.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Session(SessionError::Gone { .. }))
    }

    /// Whether the process was told to end before it had joined.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Session(SessionError::Stopped))
    }

    /// Whether somebody wants this process to be started again.
    pub fn is_restart(&self) -> bool {
        matches!(self, Self::Session(SessionError::Restart))
    }
}
