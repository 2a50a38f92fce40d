"""The condition keys that a policy may name.

A key that no request ever has would silently decide a condition (a negated operator over it always
holds), so other keys are refused when the policy is written. Keys of environments that do not
exist here (a VPC, an organisation) are known and always absent, which is what they mean there too.

Source: "AWS global condition context keys" and "Actions, resources, and condition keys for Amazon
S3" in the service authorization reference.
"""

from __future__ import annotations

from .patterns import normal_key

_AWS = """
CurrentTime EpochTime SourceIp VpcSourceIp SourceVpc SourceVpce SecureTransport UserAgent Referer
username userid PrincipalArn PrincipalType PrincipalAccount PrincipalOrgID PrincipalIsAWSService
RequestedRegion ResourceAccount ResourceOrgID TokenIssueTime MultiFactorAuthPresent
MultiFactorAuthAge SourceArn SourceAccount SourceIdentity ViaAWSService CalledVia TagKeys
FederatedProvider
"""
_S3 = """
prefix delimiter max-keys VersionId versionid LocationConstraint authType signatureAge
signatureversion TlsVersion ResourceAccount RequestObjectTagKeys if-match if-none-match
x-amz-acl x-amz-content-sha256 x-amz-copy-source x-amz-metadata-directive
x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id
x-amz-server-side-encryption-customer-algorithm x-amz-storage-class
x-amz-website-redirect-location x-amz-object-ownership x-amz-grant-read x-amz-grant-write
x-amz-grant-read-acp x-amz-grant-write-acp x-amz-grant-full-control
object-lock-mode object-lock-retain-until-date object-lock-legal-hold
object-lock-remaining-retention-days
"""
_IAM = "PolicyARN PassedToService PermissionsBoundary ResourceTag"
_STS = "ExternalId RoleSessionName SourceIdentity TransitiveTagKeys"

_KNOWN = frozenset(
    f"{service}:{key}".lower()
    for service, keys in (("aws", _AWS), ("s3", _S3), ("iam", _IAM), ("sts", _STS))
    for key in keys.split()
)
_TAG_PREFIXES = (
    "aws:principaltag/",
    "aws:requesttag/",
    "aws:resourcetag/",
    "s3:existingobjecttag/",
    "s3:requestobjecttag/",
)
# Claims of a web identity token, named "<issuer>:<claim>"; an issuer is a host name, maybe with
# a path.
_CLAIMS = ("sub", "aud", "oaud", "azp", "amr", "email", "groups")


def is_known_key(key: str) -> bool:
    """Whether policies may use the condition key, in any case of letters."""
    normal = normal_key(key)
    if normal in _KNOWN:
        return True
    if normal.startswith(_TAG_PREFIXES):
        return not normal.endswith("/")
    issuer, colon, claim = key.rpartition(":")
    return bool(colon) and claim in _CLAIMS and ("." in issuer or issuer.lower() == "jwt")
