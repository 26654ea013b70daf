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
    /// Learners can't meet: no port to listen on, or a collective that this build lacks.
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
    /// The device is unknown or absent, or the role's models can't be loaded onto it.
    #[error(transparent)]
    Load(BoxError),
}

impl RoleError {
    /// Whether the same process started again would end the same way: a model that can't be loaded
    /// or a device that is not there will not be there a second later.
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Load(_))
    }

    /// Whether somebody wants this process to be started again.
    pub fn is_restart(&self) -> bool {
        matches!(self, Self::Session(SessionError::Restart))
    }
}
