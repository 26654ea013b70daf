//! An authority, the nodes that join it, and those that may not.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use retouch_proto::worker::Role;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{service::Routes, transport::server::TcpIncoming};

use super::{authority::principal_folder, *};

const LEARNER: Principal = Principal::Worker(Role::Learner);
const PATIENCE: Duration = Duration::from_secs(20);

fn authority() -> (TempDir, Arc<Authority>) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(folder.path()).unwrap();
    (folder, Arc::new(authority))
}

/// A coordinator that does nothing but admit.
async fn serve(authority: &Arc<Authority>) -> SocketAddr {
    let access = Access::from(authority.issue(Principal::Coordinator).unwrap());
    let mut server = access.server(Strangers::MayEnroll).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = authority.clone().add_enrollment(Routes::default());
    let router = server.add_routes(routes);
    tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    address
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = folders.iter().flat_map(|folder| files_below(folder));
    files.into_iter().chain(below).collect()
}

#[test]
fn files_are_for_their_owner_alone_and_tokens_stay() {
    let (folder, first) = authority();
    first.write_missing(folder.path()).unwrap();
    let files = files_below(folder.path());
    assert_eq!(files.len(), 3 + 5 * 3 + 4);
    for file in files {
        let mode = fs::metadata(&file).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
        let folder = file.parent().unwrap();
        let mode = fs::metadata(folder).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", folder.display());
    }
    let again = Authority::open_or_create(folder.path()).unwrap();
    assert_eq!(again.token(LEARNER), first.token(LEARNER));
    let text = fs::read_to_string(folder.path().join("learner/token")).unwrap();
    assert_eq!(text.parse(), Ok(first.token(LEARNER)));
    let tokens = Principal::JOINING.map(|principal| first.token(principal).reveal());
    let secrets = tokens.iter().map(|token| token.rsplit('.').next());
    assert_eq!(secrets.collect::<std::collections::HashSet<_>>().len(), 4);
    // What was there before may have been copied to other machines.
    let key = fs::read(folder.path().join("control/key.pem")).unwrap();
    again.write_missing(folder.path()).unwrap();
    assert_eq!(
        fs::read(folder.path().join("control/key.pem")).unwrap(),
        key
    );
}

#[test]
fn broken_and_exposed_files_are_named() {
    let (folder, authority) = authority();
    let own = folder.path().join("mine");
    authority.issue(LEARNER).unwrap().write(&own).unwrap();
    Credentials::load(&own).unwrap();
    let problem = |file: &str, mode: u32, text: Option<&str>| {
        let path = own.join(file);
        let (before, old_mode) = (
            fs::read(&path).unwrap(),
            fs::metadata(&path).unwrap().permissions(),
        );
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = Credentials::load(&own).unwrap_err().to_string();
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, old_mode).unwrap();
        error
    };
    let error = problem("key.pem", 0o604, None);
    assert!(
        error.contains("key.pem can be read by everybody (mode 604)"),
        "{error}"
    );
    for file in ["key.pem", "cert.pem", "ca.pem"] {
        let error = problem(file, 0o600, Some("hunter2"));
        assert!(
            error.contains(file) && !error.contains("hunter2"),
            "{error}"
        );
    }
    fs::remove_file(own.join("cert.pem")).unwrap();
    let error = Credentials::load(&own).unwrap_err().to_string();
    assert!(error.contains("cert.pem"), "{error}");
}

#[test]
fn no_debug_shows_a_secret() {
    let (_folder, authority) = authority();
    let credentials = authority.issue(LEARNER).unwrap();
    let key = credentials.key_pem.lines().nth(1).unwrap().to_owned();
    let access = Access::from(credentials.clone());
    let handshake = access.handshake(LEARNER).unwrap();
    let token = authority.token(LEARNER);
    let secret = token.reveal();
    let secret = secret.rsplit('.').next().unwrap();
    let shown = format!("{authority:?} {credentials:?} {access:?} {token:?} {handshake:?}");
    assert!(!shown.contains(&key) && !shown.contains(secret), "{shown}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

#[tokio::test]
async fn a_node_joins_with_a_token_and_then_has_its_principals_certificate() {
    let (_folder, authority) = authority();
    let address = serve(&authority).await.to_string();
    for principal in Principal::JOINING {
        let token = authority.token(principal);
        let credentials = enroll(&address, &token, principal, PATIENCE).await.unwrap();
        let chain = credentials.chain().unwrap();
        assert_eq!(access::principals(&chain[0]), [principal]);
        assert_eq!(credentials.authority_pem, authority.certificate_pem());
        let endpoint = Access::from(credentials).endpoint(&address, access::Peer::Coordinator);
        endpoint.unwrap().connect().await.unwrap();
    }
}

#[tokio::test]
async fn tokens_of_other_roles_and_runs_admit_nobody() {
    let ((_folder, run), (_other_folder, other)) = (authority(), authority());
    let address = serve(&run).await.to_string();
    let join = |token: JoinToken, principal| {
        let address = address.clone();
        async move {
            let joined = enroll(&address, &token, principal, PATIENCE).await;
            joined.map(drop).unwrap_err().to_string()
        }
    };
    let rollout = run.token(Principal::Worker(Role::Rollout));
    let error = join(rollout.clone(), LEARNER).await;
    assert_eq!(
        error,
        "this join token is for rollout-worker, not for learner"
    );
    // One that lies about its role fails at the coordinator.
    let forged = rollout
        .reveal()
        .replace("rollout-worker", "learner")
        .parse()
        .unwrap();
    let error = join(forged, LEARNER).await;
    assert!(
        error.contains("the join token is not this run's"),
        "{error}"
    );
    let coordinator = run.token(Principal::Coordinator);
    let error = join(coordinator, Principal::Coordinator).await;
    assert!(
        error.contains("the join token is not this run's"),
        "{error}"
    );
    // The node notices by itself that this coordinator is not its token's, and tells it nothing.
    let error = join(other.token(LEARNER), LEARNER).await;
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn the_authority_checks_principal_and_key_itself() {
    let (_folder, authority) = authority();
    let rollout = authority.token(Principal::Worker(Role::Rollout));
    let refusal = authority.enroll(&rollout, LEARNER, &[4; 65]).unwrap_err();
    let expected = "this join token is for rollout-worker, it does not admit learner";
    assert_eq!(refusal.to_string(), expected);
    let refusal = authority.enroll(&authority.token(LEARNER), LEARNER, &[4; 64]);
    assert!(
        refusal
            .unwrap_err()
            .to_string()
            .contains("65 bytes is expected, 64 came")
    );
}

#[tokio::test]
async fn an_absent_coordinator_is_waited_for_and_then_named() {
    let (_folder, authority) = authority();
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let token = authority.token(LEARNER);
    let joined = enroll(
        &gone.to_string(),
        &token,
        LEARNER,
        Duration::from_millis(200),
    )
    .await;
    let error = joined.unwrap_err();
    assert!(matches!(error, EnrollError::Away { .. }), "{error}");
    assert!(error.to_string().contains(&gone.to_string()), "{error}");
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn day(number: u32) -> SystemTime {
    SystemTime::now() + DAY * number
}

/// Dates of a certificate that was issued at that time.
fn issued(at: SystemTime) -> authority::Dates {
    authority::Dates::of_certificate(at)
}

/// Dates of one that is to come.
fn from(time: SystemTime) -> authority::Dates {
    authority::Dates {
        not_before: time.duration_since(UNIX_EPOCH).unwrap(),
        ..issued(time)
    }
}

fn days_ago(number: u32) -> SystemTime {
    SystemTime::now() - DAY * number
}

/// `YYYY-MM-DD`.
fn date(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap();
    (rcgen::date_time_ymd(1970, 1, 1) + since)
        .date()
        .to_string()
}

#[test]
fn certificates_are_renewed_in_time_with_the_same_keys_and_tokens() {
    let (folder, authority) = authority();
    authority.write_missing(folder.path()).unwrap();
    let contents = || -> Vec<(std::path::PathBuf, String)> {
        let mut files = files_below(folder.path());
        files.sort();
        let read = |file: std::path::PathBuf| (file.clone(), fs::read_to_string(file).unwrap());
        files.into_iter().map(read).collect()
    };
    let first = contents();
    authority.write_missing_at(folder.path(), day(300)).unwrap();
    assert!(contents() == first, "they last for two months more");
    let mut before = first;
    // Also those that have expired.
    for number in [310, 2_000] {
        let now = day(number);
        authority.write_missing_at(folder.path(), now).unwrap();
        let renewed = contents();
        let changed = before.iter().zip(&renewed).filter(|(old, new)| old != new);
        let changed: Vec<_> = changed.map(|(old, _)| old.0.file_name().unwrap()).collect();
        assert_eq!(changed, ["cert.pem"; 5]);
        for principal in Principal::ALL {
            let own = principal_folder(folder.path(), principal);
            Credentials::load_at(&own, now).unwrap();
        }
        before = renewed;
    }
}

#[test]
fn what_another_authority_issued_is_left_alone() {
    let ((folder, authority), (_other_folder, other)) = (authority(), authority());
    other
        .write_missing_at(folder.path(), days_ago(400))
        .unwrap();
    let certificate = folder.path().join("learner/cert.pem");
    let before = fs::read(&certificate).unwrap();
    authority.write_missing(folder.path()).unwrap();
    assert_eq!(fs::read(certificate).unwrap(), before);
}

#[test]
fn a_folder_that_is_a_year_old_says_so() {
    let (folder, authority) = authority();
    let own = folder.path().join("mine");
    let old = authority.issue_with(LEARNER, issued(days_ago(400)));
    old.unwrap().write(&own).unwrap();
    let error = Credentials::load(&own).unwrap_err().to_string();
    let expected = format!(
        "the certificate of learner in {} expired on {}; this machine's clock says {}",
        own.display(),
        date(days_ago(34)),
        date(SystemTime::now()),
    );
    assert!(error.starts_with(&expected), "{error}");
    authority
        .issue_with(LEARNER, from(day(9)))
        .unwrap()
        .write(&own)
        .unwrap();
    let error = Credentials::load(&own).unwrap_err().to_string();
    let expected = format!("is not valid before {}; this machine's clock", date(day(9)));
    assert!(error.contains(&expected), "{error}");
}

/// What a client is told that has these credentials, where the server has those.
async fn told(server: Credentials, client: Credentials) -> Result<(), String> {
    let mut server = Access::from(server).server(Strangers::Refused).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (_folder, other) = authority();
    let router = server.add_routes(other.add_enrollment(Routes::default()));
    tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    let endpoint = Access::from(client).endpoint(&address, access::Peer::Coordinator);
    let answer = enrollment_grpc::call(&endpoint.unwrap()).await;
    match answer {
        // The service was reached, and knows no such token.
        Err(status) if status.code() == tonic::Code::InvalidArgument => Ok(()),
        Err(status) if is_distrust(&status) => Err(explain(&status)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn wrong_dates_are_told_on_both_sides() {
    let (_folder, authority) = authority();
    let (server, client) = (Principal::Coordinator, LEARNER);
    let issue = |principal, dates| authority.issue_with(principal, dates).unwrap();
    let old = issued(days_ago(400));
    let now = issued(SystemTime::now());
    told(issue(server, now), issue(client, now)).await.unwrap();
    let error = told(issue(server, old), issue(client, now)).await;
    let error = error.unwrap_err();
    let expected = format!(
        "the other side's certificate expired on {}",
        date(days_ago(34))
    );
    assert!(error.contains(&expected), "{error}");
    let error = told(issue(server, from(day(9))), issue(client, now)).await;
    let error = error.unwrap_err();
    let expected = format!("certificate is not valid before {}", date(day(9)));
    assert!(error.contains(&expected), "{error}");
    let error = told(issue(server, now), issue(client, old)).await;
    let error = error.unwrap_err();
    assert!(
        error.contains("by the other side's clock, this side's"),
        "{error}"
    );
}

#[tokio::test]
async fn an_authority_whose_own_certificate_has_expired_still_speaks_for_its_run() {
    let folder = tempfile::tempdir().unwrap();
    let dates = issued(days_ago(400));
    Authority::create(&folder.path().join("authority"), dates).unwrap();
    let authority = Arc::new(Authority::open_or_create(folder.path()).unwrap());
    let address = serve(&authority).await.to_string();
    let token = authority.token(LEARNER);
    let credentials = enroll(&address, &token, LEARNER, PATIENCE).await.unwrap();
    let server = authority.issue(Principal::Coordinator).unwrap();
    told(server, credentials).await.unwrap();
}

#[tokio::test]
async fn clocks_may_differ_by_weeks() {
    let (_folder, authority) = authority();
    for at in [days_ago(200), day(200)] {
        let issue = |principal| authority.issue_with(principal, issued(at)).unwrap();
        told(issue(Principal::Coordinator), issue(LEARNER))
            .await
            .unwrap();
    }
}

/// As a run folder was before roles had the names of their commands.
#[test]
fn folders_and_tokens_of_before_are_good() {
    let (folder, run) = authority();
    run.write_missing(folder.path()).unwrap();
    let role = Principal::Worker(Role::Rollout);
    let (now, before) = (
        folder.path().join("rollout-worker"),
        folder.path().join("rollout"),
    );
    assert_eq!(principal_folder(folder.path(), role), now);
    fs::rename(&now, &before).unwrap();
    run.write_missing(folder.path()).unwrap();
    assert!(!now.exists(), "one folder is enough");
    assert_eq!(principal_folder(folder.path(), role), before);
    Credentials::load(&before).unwrap();

    let token = fs::read_to_string(before.join("token")).unwrap();
    assert_eq!(token.trim(), run.token(role).reveal());
    let written_before = token.replace("retouch.rollout-worker.", "retouch.rollout.");
    assert_eq!(
        written_before.parse::<JoinToken>().unwrap(),
        run.token(role)
    );
}
