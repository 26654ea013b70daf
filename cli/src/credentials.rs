//! How a process of the command line proves who it is: a folder with a certificate, or a join token.

use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, ValueHint};
use retouch_credentials::{
    Access, Authority, Credentials, EnrollError, JoinToken, Principal, authority::principal_folder,
    enroll,
};
use retouch_proto::RunFolder;
use retouch_worker::session::CoordinatorAddress;

use crate::exit::{Refused, Unreachable, UsageError};

/// The environment variable that carries a join token: other users can read a command line.
const TOKEN_VARIABLE: &str = "RETOUCH_TOKEN";
/// The environment variable that names a credentials folder.
const FOLDER_VARIABLE: &str = "RETOUCH_CREDENTIALS";

/// What a process shows to others.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CredentialArgs {
    /// A folder with ca.pem, cert.pem and key.pem, or with such a folder for each role.
    #[arg(long, env = FOLDER_VARIABLE, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    credentials: Option<PathBuf>,
    /// A join token, for which the coordinator gives a certificate, or several separated by commas;
    /// better given in the environment than for all to see.
    #[arg(long, env = TOKEN_VARIABLE, hide_env_values = true)]
    token: Option<TokenText>,
}

/// A token as it was typed. It is read later: clap's errors repeat what they can't read.
#[derive(Clone)]
struct TokenText(String);

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl FromStr for TokenText {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl CredentialArgs {
    /// Access as `principal`: with the folder, or the token, or what `fallback` has. A
    /// coordinator that a token is for is waited for as long as `patience`.
    ///
    /// # Errors
    /// If none was given, or the given one is not good.
    pub(crate) async fn access(
        &self,
        principal: Principal,
        coordinator: &CoordinatorAddress,
        fallback: Option<PathBuf>,
        patience: Duration,
    ) -> anyhow::Result<Access> {
        if let (None, Some(TokenText(text))) = (&self.credentials, &self.token) {
            let token = token_for(principal, text)?;
            let address = coordinator.resolve().map_err(Unreachable)?;
            let enrolled = enroll(&address, &token, principal, patience).await;
            return Ok(enrolled.map_err(not_enrolled)?.into());
        }
        let folder = self.credentials.clone().or(fallback);
        let folder = folder.ok_or_else(|| {
            let problem = "give --token or --credentials FOLDER";
            UsageError(format!("no credentials for {principal}: {problem}"))
        })?;
        let of_role = principal_folder(&folder, principal);
        let folder = if of_role.is_dir() { of_role } else { folder };
        let credentials = Credentials::load(&folder).with_context(|| {
            let folder = folder.display();
            UsageError(format!("no credentials for {principal} in {folder}"))
        })?;
        Ok(credentials.into())
    }
}

/// The token that is for this principal. If none is, the first one: what is wrong with it is told later.
fn token_for(principal: Principal, text: &str) -> Result<JoinToken, UsageError> {
    let tokens: Result<Vec<JoinToken>, _> = text.split(',').map(str::parse).collect();
    let mut tokens = tokens.map_err(wrong)?;
    let place = tokens.iter().position(|token| token.principal == principal);
    Ok(tokens.swap_remove(place.unwrap_or(0)))
}

fn wrong(error: impl fmt::Display) -> UsageError {
    UsageError(error.to_string())
}

/// The exit code tells what may be tried again.
fn not_enrolled(error: EnrollError) -> anyhow::Error {
    match error {
        EnrollError::OtherPrincipal { .. } | EnrollError::Credentials(_) => wrong(error).into(),
        EnrollError::Refused { .. } => Refused(error.to_string()).into(),
        EnrollError::Away { .. } => Unreachable(error.to_string()).into(),
    }
}

/// The folder of a principal's credentials in a run folder.
pub(crate) fn in_run_folder(run_dir: &Path, principal: Principal) -> PathBuf {
    principal_folder(&RunFolder::new(run_dir).credentials(), principal)
}

/// The run's authority, made at the first start, with credentials for everyone beside it.
pub(crate) fn run_authority(run_dir: &Path) -> anyhow::Result<Arc<Authority>> {
    let folder = RunFolder::new(run_dir).credentials();
    let made = Authority::open_or_create(&folder).and_then(|authority| {
        authority.write_missing(&folder)?;
        Ok(Arc::new(authority))
    });
    made.map_err(|error| match error.is_lasting() {
        true => UsageError(error.to_string()).into(),
        false => error.into(),
    })
}
