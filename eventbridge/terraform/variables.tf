variable "cluster_name" {
  type        = string
  description = "The cluster's name; the same as `cluster` in the controller's configuration."

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", var.cluster_name))
    error_message = "A cluster's name is 1 to 63 letters, digits, `-` and `_`, beginning with a letter or digit."
  }
}

variable "alarm_topic_arn" {
  type        = string
  description = "The SNS topic that both alarms tell. Without one they are only to be seen."
  default     = ""

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]+)?$", var.alarm_topic_arn))
    error_message = "It is the ARN of an SNS topic, or nothing."
  }
}

variable "oldest_message_seconds" {
  type        = number
  description = "Older messages mean that nobody reads the queue. At least 90: a warning about an instance of another cluster is kept until its visibility has run out twice."
  default     = 90

  validation {
    condition     = var.oldest_message_seconds >= 90 && var.oldest_message_seconds <= 3600
    error_message = "It is 90 to 3600."
  }
}

variable "retention_seconds" {
  type        = number
  description = "How long the queue keeps what nobody takes. Less than the dead-letter queue's 14 days, because there a message is as old as it was here."
  default     = 345600

  validation {
    condition     = contains([3600, 14400, 86400, 345600, 604800], var.retention_seconds)
    error_message = "It is 3600, 14400, 86400, 345600 or 604800."
  }
}

variable "visibility_seconds" {
  type        = number
  description = "The same as `queue.visibility` of the controller, which says it anew with every receive; longer than the 8 seconds that first aid may take."
  default     = 30

  validation {
    condition     = var.visibility_seconds >= 9 && var.visibility_seconds <= 120
    error_message = "It is 9 to 120."
  }
}

variable "max_receives" {
  type        = number
  description = "Receives before a message goes to the dead-letter queue. More than 3, because a warning about an unknown instance is received three times on purpose; the rest is for controllers that restart."
  default     = 10

  validation {
    condition     = var.max_receives >= 5 && var.max_receives <= 100
    error_message = "It is 5 to 100."
  }
}

variable "kms_key_arn" {
  type        = string
  description = "A KMS key in place of SQS's own. Its policy must let events.amazonaws.com and the controller's role use kms:Decrypt, and the former kms:GenerateDataKey."
  default     = ""

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?$", var.kms_key_arn))
    error_message = "It is the ARN of a KMS key, or nothing."
  }
}
