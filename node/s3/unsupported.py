"""Operations that S3 has and this server does not (yet): each answers 501 NotImplemented by its name.

A row each, so that a request for one of them never falls through to a plain GET, PUT or DELETE.
"""

from __future__ import annotations

BUCKET_OPERATIONS = """
CreateBucketMetadataConfiguration POST metadataConfiguration
CreateBucketMetadataTableConfiguration POST metadataTable
CreateSession GET session
DeleteBucketAnalyticsConfiguration DELETE analytics
DeleteBucketCors DELETE cors
DeleteBucketEncryption DELETE encryption
DeleteBucketIntelligentTieringConfiguration DELETE intelligent-tiering
DeleteBucketInventoryConfiguration DELETE inventory
DeleteBucketLifecycle DELETE lifecycle
DeleteBucketMetadataConfiguration DELETE metadataConfiguration
DeleteBucketMetadataTableConfiguration DELETE metadataTable
DeleteBucketMetricsConfiguration DELETE metrics
DeleteBucketOwnershipControls DELETE ownershipControls
DeleteBucketPolicy DELETE policy
DeleteBucketReplication DELETE replication
DeleteBucketTagging DELETE tagging
DeleteBucketWebsite DELETE website
DeletePublicAccessBlock DELETE publicAccessBlock
GetBucketAbac GET abac
GetBucketAccelerateConfiguration GET accelerate
GetBucketAcl GET acl
GetBucketAnalyticsConfiguration GET analytics id
GetBucketCors GET cors
GetBucketEncryption GET encryption
GetBucketIntelligentTieringConfiguration GET intelligent-tiering id
GetBucketInventoryConfiguration GET inventory id
GetBucketLifecycleConfiguration GET lifecycle
GetBucketLogging GET logging
GetBucketMetadataConfiguration GET metadataConfiguration
GetBucketMetadataTableConfiguration GET metadataTable
GetBucketMetricsConfiguration GET metrics id
GetBucketNotificationConfiguration GET notification
GetBucketOwnershipControls GET ownershipControls
GetBucketPolicy GET policy
GetBucketPolicyStatus GET policyStatus
GetBucketReplication GET replication
GetBucketRequestPayment GET requestPayment
GetBucketTagging GET tagging
GetBucketWebsite GET website
GetObjectLockConfiguration GET object-lock
GetPublicAccessBlock GET publicAccessBlock
ListBucketAnalyticsConfigurations GET analytics
ListBucketIntelligentTieringConfigurations GET intelligent-tiering
ListBucketInventoryConfigurations GET inventory
ListBucketMetricsConfigurations GET metrics
ListenBucketNotification GET events
PutBucketAbac PUT abac
PutBucketAccelerateConfiguration PUT accelerate
PutBucketAcl PUT acl
PutBucketAnalyticsConfiguration PUT analytics
PutBucketCors PUT cors
PutBucketEncryption PUT encryption
PutBucketIntelligentTieringConfiguration PUT intelligent-tiering
PutBucketInventoryConfiguration PUT inventory
PutBucketLifecycleConfiguration PUT lifecycle
PutBucketLogging PUT logging
PutBucketMetricsConfiguration PUT metrics
PutBucketNotificationConfiguration PUT notification
PutBucketOwnershipControls PUT ownershipControls
PutBucketPolicy PUT policy
PutBucketReplication PUT replication
PutBucketRequestPayment PUT requestPayment
PutBucketTagging PUT tagging
PutBucketVersioning PUT versioning
PutBucketWebsite PUT website
PutObjectLockConfiguration PUT object-lock
PutPublicAccessBlock PUT publicAccessBlock
UpdateBucketMetadataAnnotationTableConfiguration PUT metadataAnnotationTable
UpdateBucketMetadataInventoryTableConfiguration PUT metadataInventoryTable
UpdateBucketMetadataJournalTableConfiguration PUT metadataJournalTable
PostObject POST
"""

OBJECT_OPERATIONS = """
DeleteObjectAnnotation DELETE annotation
DeleteObjectTagging DELETE tagging
GetObjectAcl GET acl
GetObjectAnnotation GET annotation annotationName
GetObjectLegalHold GET legal-hold
GetObjectRetention GET retention
GetObjectTorrent GET torrent
ListObjectAnnotations GET annotation
PutObjectAcl PUT acl
PutObjectAnnotation PUT annotation
PutObjectLegalHold PUT legal-hold
PutObjectRetention PUT retention
PutObjectTagging PUT tagging
RenameObject PUT renameObject
RestoreObject POST restore
SelectObjectContent POST select
UpdateObjectEncryption PUT encryption
"""

# Query keys that belong to the rows above without telling them apart.
OPTIONAL_KEYS = frozenset(
    {
        "id",
        "continuation-token",
        "select-type",
        "versionId",
        "annotationName",
        "prefix",
        "suffix",
        "events",
        "ping",
    }
)
